use crate::{CertificateFiles, FilesError, PrivateKey, ServerCa, certificates_to_pem};
use std::fs;
use time::OffsetDateTime;

#[test]
fn files_are_read_when_they_change_and_only_as_a_pair() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    let files = CertificateFiles::new(&certificate, &key);
    let handle = files.handle();
    let missing = files.refresh().unwrap_err();
    assert_eq!(missing.to_string(), format!("can't read {}", certificate.display()));
    assert!(handle.latest().is_none());

    let now = OffsetDateTime::now_utc();
    let ca = ServerCa::generate("ca", now).unwrap();
    let write = |private: &PrivateKey| {
        let issued = ca.sign_server(private, &["a".to_owned()], now).unwrap();
        fs::write(&certificate, certificates_to_pem(issued.chain.iter())).unwrap();
    };
    let (old, new) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    write(&old);
    fs::write(&key, old.to_pem().as_bytes()).unwrap();
    assert!(files.refresh().unwrap());
    assert!(!files.refresh().unwrap(), "nothing changed");
    let presented = handle.latest().unwrap().leaf();
    write(&new);
    assert!(matches!(files.refresh(), Err(FilesError::Unusable(path, _)) if path == certificate));
    assert_eq!(handle.latest().unwrap().leaf(), presented, "half of a pair");
    fs::write(&key, new.to_pem().as_bytes()).unwrap();
    assert!(files.refresh().unwrap());
    assert_ne!(handle.latest().unwrap().leaf(), presented);
}
