use std::time::{Duration, Instant};

use countersign_core::proxylog::{Direction, Redaction, own};

use super::{Ledger, Line, PENDING_MAX, Record};

struct Bench {
    ledger: Ledger,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(Redaction::default()),
            now: Instant::now(),
        }
    }

    fn sees(&mut self, direction: Direction, text: &str) -> Vec<Record> {
        let mut seen = Vec::new();
        let line = Line::Whole(text.as_bytes());
        self.ledger
            .line(direction, &line, self.now, &mut |record| seen.push(record));
        seen
    }

    fn client(&mut self, text: &str) -> Vec<Record> {
        self.sees(Direction::ClientToServer, text)
    }

    fn server(&mut self, text: &str) -> Vec<Record> {
        self.sees(Direction::ServerToClient, text)
    }
}

#[test]
fn numbers_and_text_are_logged_as_they_are_not_as_go_would_round_them() {
    let mut sees = Bench::new();
    let asked =
        r#"{"id":1,"method":"tools/call","params":{"n":9007199254740993,"s":"\ud800","m":1.0}}"#;
    sees.client(asked);
    let record = sees.server(r#"{"id":1,"result":{"at":1795159135189522853}}"#);
    let text = |json: &Option<Vec<u8>>| {
        String::from_utf8(json.clone().unwrap_or_default()).unwrap_or_default()
    };
    assert_eq!(
        text(&record[0].params),
        r#"{"m":1,"n":9007199254740993,"s":"\ud800"}"#
    );
    assert_eq!(text(&record[0].result), r#"{"at":1795159135189522853}"#);
}

#[test]
fn ids_of_different_kinds_are_different_calls() {
    let mut bench = Bench::new();
    bench.client(r#"{"id":7,"method":"number"}"#);
    bench.client(r#"{"id":"7","method":"string"}"#);
    bench.client(r#"{"id":null,"method":"null"}"#);
    assert_eq!(bench.server(r#"{"id":"7","result":1}"#)[0].method, "string");
    assert_eq!(bench.server(r#"{"id":null,"error":1}"#)[0].method, "null");
    assert_eq!(bench.server(r#"{"id":7,"result":1}"#)[0].method, "number");
}

#[test]
fn requests_of_one_id_are_answered_in_order_and_by_spelling_first() {
    let mut bench = Bench::new();
    bench.client(r#"{"id":1,"method":"first"}"#);
    bench.client(r#"{"id":1.0,"method":"second"}"#);
    bench.client(r#"{"id":1,"method":"third"}"#);
    assert_eq!(bench.server(r#"{"id":1.0,"result":1}"#)[0].method, "second");
    assert_eq!(bench.server(r#"{"id":1,"result":1}"#)[0].method, "first");
    assert_eq!(bench.server(r#"{"id":1e0,"result":1}"#)[0].method, "third");
}

#[test]
fn both_directions_count_their_own_ids() {
    let mut bench = Bench::new();
    bench.client(r#"{"id":0,"method":"tools/list"}"#);
    bench.server(r#"{"id":0,"method":"roots/list"}"#);
    let answer = bench.client(r#"{"id":0,"result":{}}"#);
    assert_eq!(
        (answer[0].method.as_str(), answer[0].direction),
        ("roots/list", Direction::ClientToServer)
    );
    let answer = bench.server(r#"{"id":0,"result":{}}"#);
    assert_eq!(
        (answer[0].method.as_str(), answer[0].direction),
        ("tools/list", Direction::ServerToClient)
    );
}

#[test]
fn an_answer_after_minutes_is_an_answer() {
    let mut bench = Bench::new();
    bench.client(r#"{"id":1,"method":"slow"}"#);
    bench.now += Duration::from_mins(10);
    let answer = bench.server(r#"{"id":1,"result":{}}"#);
    assert_eq!(
        (answer[0].method.as_str(), answer[0].duration_ms),
        ("slow", 600_000)
    );
}

#[test]
fn requests_without_end_are_bounded_and_the_oldest_is_logged() {
    let mut bench = Bench::new();
    for id in 0..PENDING_MAX {
        assert!(
            bench
                .client(&format!(r#"{{"id":{id},"method":"m"}}"#))
                .is_empty()
        );
    }
    let evicted = bench.client(r#"{"id":"new","method":"m"}"#);
    assert_eq!(evicted.len(), 1);
    assert_eq!(evicted[0].request_id, "0");
    assert!(evicted[0].error.is_some());
    let mut left = 0;
    bench.ledger.close("test", bench.now, &mut |_| left += 1);
    assert_eq!(left, PENDING_MAX);
}

#[test]
fn a_batch_of_noise_is_one_entry() {
    let mut bench = Bench::new();
    let batch = format!("[{}{{\"method\":\"m\"}}]", "7,".repeat(1000));
    let seen = bench.client(&batch);
    let methods: Vec<_> = seen.iter().map(|record| record.method.as_str()).collect();
    assert_eq!(methods, ["m", own::NOT_A_MESSAGE]);
    for strange in [
        "{}",
        "[]",
        "[[]]",
        "7",
        r#"{"id":1}"#,
        r#"{"method":7,"result":1}"#,
    ] {
        assert_eq!(
            bench.server(strange)[0].method,
            own::NOT_A_MESSAGE,
            "{strange}"
        );
    }
}

#[test]
fn errors_that_are_no_json_rpc_errors_stand_as_they_are() {
    let mut bench = Bench::new();
    for error in [
        r#""x""#,
        r#"{"code":"a"}"#,
        r#"{"code":1.5,"message":"m"}"#,
        "null",
    ] {
        let answer = bench.server(&format!(r#"{{"id":1,"error":{error}}}"#));
        assert_eq!(answer[0].error.as_deref(), Some(error.as_bytes()));
    }
}
