//! Every question gets an answer to itself that fits, and no other bytes get more than a header.

use meridian_proxy::dns::{Reply, parse_query};

pub(crate) fn run(bytes: &[u8]) {
    match parse_query(bytes) {
        Ok(question) => {
            for reply in [Reply::Blocked, Reply::Failed, Reply::Addresses(vec![[241, 0, 0, 1].into()])] {
                let answer = question.reply(&reply, true);
                assert!(answer.len() <= 1232);
                assert!(question.is_answered_by(&answer, question.id));
            }
        }
        Err(error) => assert!(error.reply().is_none_or(|answer| answer.len() == 12)),
    }
}
