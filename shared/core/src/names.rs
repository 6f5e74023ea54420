//! Names: which are valid, and how one zone's appear in another.

use std::collections::BTreeMap;

/// The alphabet and width of Kuma's name suffixes.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const HASHED_NAME_BASE: usize = 236;

/// Whether `text` is an RFC 1123 label: what a DNS label may be, in lower case, possibly beginning with a digit.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is an RFC 1035 label: a letter first.
pub fn is_label_1035(text: &str) -> bool {
    is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Whether `text` is an RFC 1123 subdomain: labels with dots between them, 253 bytes at most. Its labels may be
/// longer than 63, as in Kubernetes.
pub fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether `text` may be the name of a host: case is free, a label may begin with a digit or hold underscores, but
/// the last one isn't a number (it would be an address).
pub fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or("");
    text.len() <= 253 && text.split('.').all(is_part) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Kuma's name for a resource in places other than where it was written: the name cut to 236 bytes, `-`, and 16
/// characters from a hash of mesh, name, zone and namespace.
pub fn hashed(mesh: &str, name: &str, zone: &str, namespace: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in [mesh, name, zone, namespace].into_iter().flat_map(str::bytes) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let suffix: String = format!("{hash:x}").bytes().filter_map(suffix_letter).collect();
    let mut end = name.len().min(HASHED_NAME_BASE);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{suffix}", name.get(..end).unwrap_or(name))
}

fn suffix_letter(byte: u8) -> Option<char> {
    SUFFIX_ALPHABET.get(usize::from(byte) % SUFFIX_ALPHABET.len()).map(|letter| char::from(*letter))
}

/// The name that users know: the label `kuma.io/display-name`, else the name itself.
pub fn display<'a>(name: &'a str, labels: &'a BTreeMap<String, String>) -> &'a str {
    labels.get(crate::labels::DISPLAY_NAME).map_or(name, String::as_str)
}

/// The longest name of a resource, and of a kind whose names become DNS labels.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Kubernetes' words, which Kuma uses in some places.
pub(crate) const NOT_KUBERNETES_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
     alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
     regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

pub(crate) const NOT_A_SUBDOMAIN: &str = "invalid characters. A lowercase RFC 1123 subdomain must consist of lower \
     case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";

/// Why `name` can't be a resource's, in Kuma's words. `short`: it becomes a DNS label.
pub fn invalid_name(name: &str, short: bool) -> Option<String> {
    if name.is_empty() {
        return Some("cannot be empty".into());
    }
    if short && name.len() > MAX_LABEL {
        return Some(format!("must not be longer than {MAX_LABEL} characters"));
    }
    if name.len() > MAX_NAME {
        return Some(format!("value length must less or equal {MAX_NAME}"));
    }
    if !is_subdomain(name) {
        return Some(NOT_A_SUBDOMAIN.into());
    }
    (short && !is_label_1035(name)).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character"
            .into()
    })
}

/// Why `mesh` can't be the name of a resource's mesh, in Kuma's words.
pub fn invalid_mesh_name(mesh: &str) -> Option<String> {
    if mesh.is_empty() {
        return Some("cannot be empty".into());
    }
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    (mesh.len() > MAX_NAME || !mesh.bytes().all(valid)).then(|| {
        "invalid characters. Valid characters are numbers, lowercase latin letters and '-', '_', '.' symbols.".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_names_are_kumas() {
        assert_eq!(hashed("default", "redis-zone-2", "zone-2", ""), "redis-zone-2-ff29vc4685c6f594");
    }

    #[test]
    fn hashed_names_stay_names() {
        let long = "a".repeat(300);
        let name = hashed("m", &long, "z", "");
        assert!(name.len() <= 253 && is_subdomain(&name), "{name}");
        assert_ne!(hashed("m", "n", "a", ""), hashed("m", "n", "b", ""));
    }

    #[test]
    fn hosts_are_not_addresses_in_disguise() {
        for host in ["example.com", "Example.COM.", "_dmarc.example.com", "localhost", "1.example.com", "a1"]
        {
            assert!(is_hostname(host), "{host}");
        }
        // The last label is a number: many resolvers read these as addresses.
        for host in ["1.2.3.4", "2130706433", "127.1", "", "a..b", "-a.b", "a b", "a/b", "*.a"] {
            assert!(!is_hostname(host), "{host}");
        }
    }

    #[test]
    fn labels_and_subdomains() {
        assert!(is_label("a-1") && !is_label("A") && !is_label("") && !is_label(&"a".repeat(64)));
        assert!(is_label_1035("a") && !is_label_1035("1a"));
        assert!(
            is_subdomain("a.b-c.1") && !is_subdomain("a..b") && !is_subdomain(".a") && !is_subdomain("a_b")
        );
    }
}
