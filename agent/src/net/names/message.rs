//! Questions and answers of the DNS, as bytes. Pure: the codec is the library's, what an answer means is ours.

use super::answer::{Answer, Reply};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::IpAddr;
use std::time::Duration;

/// Names that one name may stand for, one after the other. More is a loop or an attack.
const CHAIN_MAX: usize = 16;
/// Addresses of one answer that are looked at.
const ADDRESSES_MAX: usize = 32;
/// What a datagram may carry without being broken up on the way.
const PAYLOAD_MAX: u16 = 1_232;

/// Which kind of address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const fn record(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

/// A question, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    id: u16,
    query: Query,
    /// What is sent.
    pub(super) bytes: Vec<u8>,
}

/// What some bytes are to a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Its answer.
    Reply(Reply),
    /// Its answer, which was too long for a datagram.
    Truncated,
    /// Something else: go on waiting.
    NotOurs,
}

impl Question {
    /// `None` when the host cannot be a name of the DNS.
    pub(super) fn new(id: u16, host: &str, family: Family) -> Option<Self> {
        let mut name = Name::from_ascii(host).ok()?;
        name.set_fqdn(true);
        let query = Query::query(name, family.record());
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_MAX);
        message.set_edns(edns);
        let bytes = message.to_vec().ok()?;
        Some(Self { id, query, bytes })
    }

    /// Bytes that cannot be read are nobody's answer: over UDP anybody may have sent them.
    pub(super) fn read(&self, bytes: &[u8]) -> Read {
        let Ok(message) = Message::from_vec(bytes) else { return Read::NotOurs };
        let metadata = &message.metadata;
        let same = |asked: &Query| {
            asked.query_type() == self.query.query_type()
                && asked.query_class() == self.query.query_class()
                && asked.name() == self.query.name()
        };
        // A server that cannot even read the question sends it not back.
        let failed = metadata.response_code != ResponseCode::NoError && message.queries.is_empty();
        let ours = metadata.id == self.id
            && metadata.message_type == MessageType::Response
            && (failed || (message.queries.len() == 1 && message.queries.iter().all(same)));
        if !ours {
            return Read::NotOurs;
        }
        if metadata.truncation {
            return Read::Truncated;
        }
        Read::Reply(match metadata.response_code {
            ResponseCode::NoError => self.follow(&message.answers),
            ResponseCode::NXDomain => Reply::NoSuchName,
            other => Reply::Failed(format!("the server says {other}")),
        })
    }

    /// From the name asked for, along the names that it stands for, to the addresses.
    fn follow(&self, answers: &[Record]) -> Reply {
        let (mut name, mut chain, mut ttl) = (self.query.name().clone(), Vec::new(), None::<u32>);
        let mut lower = |record: &Record| ttl = Some(ttl.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
        while chain.len() <= CHAIN_MAX {
            let of_name = |record: &&Record| record.name == name;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for record in answers.iter().filter(of_name).take(ADDRESSES_MAX) {
                if let Some(address) = address_of(&record.data) {
                    lower(record);
                    addresses.push(address);
                }
            }
            if !addresses.is_empty() {
                let ttl = ttl.map(|ttl| Duration::from_secs(ttl.into()));
                return Reply::Found(Answer { addresses, ttl, chain });
            }
            let alias = answers.iter().filter(of_name).find_map(|record| match &record.data {
                RData::CNAME(target) => Some((record, target.0.clone())),
                _ => None,
            });
            let Some((record, target)) = alias else { return Reply::NoAddress };
            lower(record);
            chain.push(target.to_ascii().trim_end_matches('.').to_ascii_lowercase());
            name = target;
        }
        Reply::Failed(format!("the name stands for more than {CHAIN_MAX} others"))
    }
}

fn address_of(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME};
    use proptest::prelude::*;

    const HOST: &str = "usw.store.example";

    fn question() -> Question {
        Question::new(7, HOST, Family::V4).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(format!("{text}.")).unwrap()
    }

    fn answer(records: Vec<Record>) -> Message {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(HOST), RecordType::A));
        message.add_answers(records);
        message
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(203, 0, 113, last)))
    }

    fn cname(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn read(message: &Message) -> Read {
        question().read(&message.to_vec().unwrap())
    }

    #[test]
    fn a_chain_of_five_names_is_followed_in_any_order_and_its_shortest_life_counts() {
        let mut records = vec![a("l5.example", 60, 1), a("l5.example", 60, 2), a("elsewhere.example", 5, 9)];
        records.push(cname(HOST, 300, "l1.example"));
        for n in 1..5 {
            records.push(cname(&format!("l{n}.example"), 10 + n, &format!("L{}.example", n + 1)));
        }
        let Read::Reply(Reply::Found(found)) = read(&answer(records)) else { panic!() };
        assert_eq!(found.chain, ["l1.example", "l2.example", "l3.example", "l4.example", "l5.example"]);
        assert_eq!(found.addresses.len(), 2);
        assert_eq!(found.ttl, Some(Duration::from_secs(11)));
    }

    #[test]
    fn a_chain_that_goes_round_or_nowhere_ends() {
        let round = [cname(HOST, 9, "b.example"), cname("b.example", 9, HOST)];
        assert!(matches!(read(&answer(round.to_vec())), Read::Reply(Reply::Failed(_))));
        assert_eq!(read(&answer(vec![cname(HOST, 9, "b.example")])), Read::Reply(Reply::NoAddress));
        assert_eq!(read(&answer(Vec::new())), Read::Reply(Reply::NoAddress));
    }

    #[test]
    fn what_answers_another_question_is_not_ours() {
        let good = answer(vec![a(HOST, 60, 1)]);
        assert!(matches!(read(&good), Read::Reply(Reply::Found(_))));
        assert_eq!(Question::new(8, HOST, Family::V4).unwrap().read(&good.to_vec().unwrap()), Read::NotOurs);
        assert_eq!(Question::new(7, HOST, Family::V6).unwrap().read(&good.to_vec().unwrap()), Read::NotOurs);
        assert_eq!(
            Question::new(7, "x.example", Family::V4).unwrap().read(&good.to_vec().unwrap()),
            Read::NotOurs
        );
        assert_eq!(question().read(&question().bytes), Read::NotOurs, "an echo of the question");
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut message = answer(Vec::new());
        message.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(read(&message), Read::Reply(Reply::NoSuchName));
        message.metadata.response_code = ResponseCode::ServFail;
        assert!(matches!(read(&message), Read::Reply(Reply::Failed(_))));
        message.queries.clear();
        assert!(matches!(read(&message), Read::Reply(Reply::Failed(_))), "without the question, too");
        message.metadata.truncation = true;
        assert_eq!(read(&message), Read::Truncated);
    }

    #[test]
    fn a_host_that_is_no_name_gives_no_question() {
        assert!(Question::new(1, &"x".repeat(64), Family::V4).is_none());
        assert!(Question::new(1, &"abc.".repeat(80), Family::V4).is_none());
    }

    proptest! {
        #[test]
        fn garbage_is_never_more_than_nobodys_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            question().read(&bytes);
        }

        #[test]
        fn a_damaged_answer_brings_no_foreign_address_along_and_nothing_down(
            at in 0_usize..120, byte in any::<u8>(), cut in 0_usize..120,
        ) {
            let mut bytes = answer(vec![cname(HOST, 9, "b.example"), a("b.example", 60, 1)]).to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            question().read(&bytes);
        }
    }
}
