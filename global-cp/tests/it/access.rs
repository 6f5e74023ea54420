use crate::harness::Replica;
use std::sync::Arc;

#[tokio::test]
async fn nobody_is_admin_for_being_local_unless_configured() {
    let global = Replica::start().await;
    assert_eq!(global.call("GET", "/meshes", None, "").await.status, 401);
    let data = global.data();
    let mut config = global.config.clone();
    global.stop().await;
    let file = data.path().join("global.yaml");
    std::fs::write(&file, "access:\n  localIsAdmin: true\n").unwrap();
    config.config = Some(file);
    let global = Replica::with(config, Arc::clone(&data)).await;
    assert_eq!(global.call("GET", "/secrets", None, "").await.status, 200);
    assert_eq!(global.call("GET", "/secrets", Some("nonsense"), "").await.status, 401);
}
