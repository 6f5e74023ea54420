//! What global asks zones: here of one that does not answer. One that does is a zone's own test.

use crate::harness::Replica;
use crate::zone::{Zone, dataplane, hashed};

#[tokio::test]
async fn of_a_zone_that_cannot_be_asked_the_answer_says_how_to_ask_it() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    east.publish(&dataplane("web")).await;
    let path = format!("/meshes/default/dataplanes/{}", hashed("east", &dataplane("web")));
    global.until("the Dataplane", &path, |_| true).await;
    let answer = global.get(&format!("{path}/_config?shadow=true&include=diff")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    for part in ["Zone east compiles", "not connected to this replica", "meridian inspect dataplane web"] {
        assert!(answer.text.contains(part), "{part} in {answer:?}");
    }
    assert_eq!(global.get("/meshes/default/dataplanes/none/_config").await.status, 404);
}
