//! The wire form of one question and its answer (RFC 1035, RFC 6891, RFC 8914).

use std::net::IpAddr;

pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const ANY: u16 = 255;
const OPT: u16 = 41;
const IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// Seconds that an answer may be kept.
const TTL: u32 = 30;
/// What we say that we take over UDP: fits every path (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
const EDE_OPTION: u16 = 15;
/// Extended error "Blocked" (RFC 8914, 4.16).
const EDE_BLOCKED: u16 = 15;
const BLOCKED_TEXT: &[u8] = b"not on the mesh's allowlist";

/// One question, as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    /// Lower case, without the trailing dot; bytes that no name has are escaped as `\ddd`.
    pub name: String,
    pub kind: u16,
    recursion_desired: bool,
    /// Name, type and class as they came: echoed with their case (clients check it against spoofing).
    raw: Vec<u8>,
    /// The client's UDP payload size, if it speaks EDNS.
    edns: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// No answer is due: an answer to an answer would loop.
    Ignore,
    /// To be answered with this response code.
    Code { id: u16, code: u8 },
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// NOERROR, with or without addresses.
    Addresses(Vec<IpAddr>),
    /// NXDOMAIN, extended error 15.
    Blocked,
    /// SERVFAIL.
    Failed,
}

const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// Reads a query: exactly one question of class IN, nothing compressed.
pub fn parse_query(bytes: &[u8]) -> Result<Question, QueryError> {
    let Some((header, body)) = bytes.split_first_chunk::<12>() else { return Err(QueryError::Ignore) };
    let [i0, i1, f0, _, q0, q1, an0, an1, ns0, ns1, ar0, ar1] = *header;
    let id = u16::from_be_bytes([i0, i1]);
    if f0 & 0x80 != 0 {
        return Err(QueryError::Ignore);
    }
    let error = |code| QueryError::Code { id, code };
    if f0 & 0x78 != 0 {
        return Err(error(NOT_IMPLEMENTED));
    }
    let counts =
        (u16::from_be_bytes([q0, q1]), u16::from_be_bytes([an0, an1]), u16::from_be_bytes([ns0, ns1]));
    if counts != (1, 0, 0) {
        return Err(error(FORMAT_ERROR));
    }
    let (name, used) = read_name(body).ok_or(error(FORMAT_ERROR))?;
    let Some([t0, t1, c0, c1]) = body.get(used..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Err(error(FORMAT_ERROR));
    };
    let (kind, class) = (u16::from_be_bytes([*t0, *t1]), u16::from_be_bytes([*c0, *c1]));
    if class != IN && class != CLASS_ANY {
        return Err(error(REFUSED));
    }
    let end = used + 4;
    let additional = body.get(end..).unwrap_or_default();
    let edns = read_edns(additional, u16::from_be_bytes([ar0, ar1])).map_err(|()| error(FORMAT_ERROR))?;
    let raw = body.get(..end).unwrap_or_default().to_vec();
    Ok(Question { id, name, kind, recursion_desired: f0 & 1 != 0, raw, edns })
}

impl Question {
    /// The answer; over UDP cut (and marked so) where it exceeds what the client takes.
    pub fn reply(&self, reply: &Reply, udp: bool) -> Vec<u8> {
        let (code, addresses) = match reply {
            Reply::Addresses(addresses) => (0, addresses.as_slice()),
            Reply::Blocked => (NAME_ERROR, &[][..]),
            Reply::Failed => (SERVER_FAILURE, &[][..]),
        };
        let whole = self.encode(code, addresses, *reply == Reply::Blocked, false);
        let limit = if udp { usize::from(self.edns.unwrap_or(512).clamp(512, UDP_PAYLOAD)) } else { 65_535 };
        if whole.len() <= limit { whole } else { self.encode(code, &[], false, true) }
    }

    /// Whether `answer` answers this question: same question, same ID as it was asked under.
    pub fn is_answered_by(&self, answer: &[u8], id: u16) -> bool {
        let Some((header, body)) = answer.split_first_chunk::<12>() else { return false };
        let [i0, i1, f0, _, q0, q1, ..] = *header;
        u16::from_be_bytes([i0, i1]) == id
            && f0 & 0x80 != 0
            && [q0, q1] == [0, 1]
            && body.get(..self.raw.len()).is_some_and(|question| question.eq_ignore_ascii_case(&self.raw))
    }

    fn encode(&self, code: u8, addresses: &[IpAddr], blocked: bool, truncated: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend(self.id.to_be_bytes());
        // QR, AA, TC, RD; RA.
        out.push(0x84 | (u8::from(truncated) << 1) | u8::from(self.recursion_desired));
        out.push(0x80 | code);
        let answers = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
        for count in [1, answers, 0, u16::from(self.edns.is_some())] {
            out.extend(count.to_be_bytes());
        }
        out.extend(&self.raw);
        for address in addresses.iter().take(usize::from(answers)) {
            // The name: a pointer to the question's.
            out.extend([0xc0, 12]);
            match address {
                IpAddr::V4(v4) => record(&mut out, A, &v4.octets()),
                IpAddr::V6(v6) => record(&mut out, AAAA, &v6.octets()),
            }
        }
        if self.edns.is_some() {
            let mut options = Vec::new();
            if blocked {
                options.extend(EDE_OPTION.to_be_bytes());
                options.extend((2 + BLOCKED_TEXT.len() as u16).to_be_bytes());
                options.extend(EDE_BLOCKED.to_be_bytes());
                options.extend(BLOCKED_TEXT);
            }
            out.push(0);
            out.extend(OPT.to_be_bytes());
            out.extend(UDP_PAYLOAD.to_be_bytes());
            out.extend([0; 4]);
            out.extend((options.len() as u16).to_be_bytes());
            out.extend(options);
        }
        out
    }
}

impl QueryError {
    /// A bare header with the code, if an answer is due.
    pub fn reply(self) -> Option<Vec<u8>> {
        match self {
            Self::Ignore => None,
            Self::Code { id, code } => {
                let [high, low] = id.to_be_bytes();
                Some(vec![high, low, 0x80, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, 0])
            }
        }
    }
}

fn record(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(IN.to_be_bytes());
    out.extend(TTL.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
}

/// The name and the bytes it took. A pointer is refused: a question has nothing to point to.
fn read_name(bytes: &[u8]) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        match length {
            0 => break,
            64.. => return None,
            _ => {}
        }
        let label = bytes.get(at..at + length)?;
        at += length;
        // RFC 1035, 2.3.4: 255 bytes with the length bytes and the root.
        if at > 254 {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(*byte)),
                b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
    }
    Some((text, at))
}

/// The OPT record's payload size. Other additional records (TSIG, say) are skipped.
fn read_edns(mut bytes: &[u8], count: u16) -> Result<Option<u16>, ()> {
    let mut found = None;
    for _ in 0..count {
        let (_, used) = read_name(bytes).ok_or(())?;
        let rest = bytes.get(used..).ok_or(())?;
        let (fixed, rest) = rest.split_first_chunk::<10>().ok_or(())?;
        let [t0, t1, c0, c1, .., l0, l1] = *fixed;
        if u16::from_be_bytes([t0, t1]) == OPT && found.replace(u16::from_be_bytes([c0, c1])).is_some() {
            return Err(());
        }
        bytes = rest.get(usize::from(u16::from_be_bytes([l0, l1]))..).ok_or(())?;
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hickory_proto::op::{Edns, Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RData, RecordType};
    use proptest::prelude::*;
    use std::str::FromStr;

    /// A query as hickory writes it.
    pub(crate) fn query(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        if edns {
            message.set_edns(Edns::new());
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn answers_are_what_a_resolver_reads() {
        let mut bytes = query("web.mesh.", RecordType::A, true);
        bytes[13..16].copy_from_slice(b"WeB");
        let question = parse_query(&bytes).unwrap();
        assert_eq!((question.name.as_str(), question.kind), ("web.mesh", A));
        let vip: IpAddr = "241.0.0.7".parse().unwrap();
        let answer = question.reply(&Reply::Addresses(vec![vip]), true);
        assert!(question.is_answered_by(&answer, 0x1234));
        let message = Message::from_vec(&answer).unwrap();
        assert_eq!((message.metadata.id, message.metadata.response_code), (0x1234, ResponseCode::NoError));
        assert_eq!(&answer[13..16], b"WeB", "case is echoed");
        assert_eq!(message.queries.len(), 1);
        assert_eq!(message.answers[0].data, RData::A("241.0.0.7".parse().unwrap()));
        assert_eq!(message.answers[0].ttl, TTL);
        assert!(message.edns.is_some());
    }

    #[test]
    fn a_refusal_says_blocked_and_has_no_soa() {
        let question = parse_query(&query("evil.example.", RecordType::A, true)).unwrap();
        let bytes = question.reply(&Reply::Blocked, true);
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        assert!(message.authorities.is_empty() && message.answers.is_empty());
        let options = format!("{:?}", message.edns.unwrap().options());
        assert!(options.contains("15") && bytes.ends_with(BLOCKED_TEXT), "{options}");
        // Without EDNS in the query there may be none in the answer.
        let question = parse_query(&query("evil.example.", RecordType::A, false)).unwrap();
        let message = Message::from_vec(&question.reply(&Reply::Blocked, true)).unwrap();
        assert!(message.edns.is_none());
    }

    #[test]
    fn what_is_no_question_is_not_answered_as_one() {
        let good = query("a.example.", RecordType::A, false);
        assert_eq!(parse_query(&good[..11]), Err(QueryError::Ignore));
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(parse_query(&response), Err(QueryError::Ignore));
        let code = |bytes: &[u8]| match parse_query(bytes) {
            Err(QueryError::Code { code, .. }) => code,
            other => panic!("{other:?}"),
        };
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&update), NOT_IMPLEMENTED);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&two), FORMAT_ERROR);
        let mut pointer = good[..12].to_vec();
        pointer.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&pointer), FORMAT_ERROR);
        let mut chaos = good.clone();
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(code(&chaos), REFUSED);
        assert_eq!(QueryError::Code { id: 7, code: REFUSED }.reply().unwrap()[3] & 0xf, REFUSED);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_marked() {
        let question = parse_query(&query("many.mesh.", RecordType::A, false)).unwrap();
        let many: Vec<IpAddr> = (0..200u8).map(|last| IpAddr::from([241, 0, 0, last])).collect();
        let message = Message::from_vec(&question.reply(&Reply::Addresses(many.clone()), true)).unwrap();
        assert!(message.metadata.truncation && message.answers.is_empty());
        let message = Message::from_vec(&question.reply(&Reply::Addresses(many), false)).unwrap();
        assert_eq!(message.answers.len(), 200);
    }

    #[test]
    fn odd_names_are_escaped() {
        let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x03a.\x00\x00\x00\x01\x00\x01");
        assert_eq!(parse_query(&bytes).unwrap().name, "a\\046\\000");
    }

    proptest! {
        /// The body of the fuzz target `dns`.
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), asked: bool) {
            let mut input = bytes;
            if asked && input.len() >= 12 {
                input[..12].copy_from_slice(&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
            match parse_query(&input) {
                Ok(question) => {
                    let answer = question.reply(&Reply::Blocked, true);
                    prop_assert!(answer.len() <= 1232 && question.is_answered_by(&answer, question.id));
                }
                Err(error) => drop(error.reply()),
            }
        }

        #[test]
        fn hickorys_questions_are_understood(name in "([a-z0-9_][a-zA-Z0-9_]{0,20}\\.){1,5}", kind in 1u16..300, edns: bool) {
            prop_assume!(kind != 41);
            let question = parse_query(&query(&name, RecordType::from(kind), edns)).unwrap();
            prop_assert_eq!(format!("{}.", question.name), name.to_ascii_lowercase());
            prop_assert_eq!(question.kind, kind);
        }
    }
}
