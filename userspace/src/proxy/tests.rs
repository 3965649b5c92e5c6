#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::proxylog::signature::{self, SignatureState};
use countersign_core::proxylog::{Direction, Entry, Key, LogItem, own};
use proptest::prelude::*;

use super::server::Server;
use super::{Args, EXIT_LOG_FAILED, Ends, KeyArgs, Proxy};

const SECRET: &[u8] = b"a test key";

/// Input that makes the client wait for the server's first byte.
const AFTER_OUTPUT: &[u8] = b"(after output)";

/// What came out of one run.
struct Run {
    output: Vec<u8>,
    code: u8,
    entries: Vec<Entry>,
}

impl Run {
    fn methods(&self) -> Vec<&str> {
        self.entries
            .iter()
            .map(|entry| entry.method.as_str())
            .collect()
    }
}

#[test]
fn a_call_is_logged_as_mcp_audit_logs_it() {
    let run = proxied(
        r#"read -r line; printf '{"jsonrpc":"2.0","id":1,"result":{"z":1.0,"a":"<x>"}}\n'; cat"#,
        &[br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"my_token":"s"}}}
"#],
    );
    let [entry] = run.entries.as_slice() else {
        panic!("{:?}", run.entries)
    };
    assert_eq!(entry.direction, Direction::ServerToClient);
    assert_eq!(
        (entry.method.as_str(), entry.tool_name.as_deref()),
        ("tools/call", Some("t"))
    );
    assert_eq!(entry.request_id.as_deref(), Some("1"));
    assert_eq!(
        entry.params.as_deref(),
        Some(&br#"{"arguments":{"my_token":"[REDACTED]"},"name":"t"}"#[..])
    );
    assert_eq!(
        entry.result.as_deref(),
        Some(&br#"{"a":"\u003cx\u003e","z":1}"#[..])
    );
    assert!(entry.ulid_ms.is_some() && entry.utc_ns.is_some() && entry.error.is_none());
    assert_eq!(
        (entry.client_id.as_str(), entry.server_id.as_str()),
        ("c", "s")
    );
    assert_eq!(run.code, 0);
}

#[test]
fn what_mcp_audit_is_silent_about_is_in_the_log() {
    // A server that reads all and answers nothing but one late answer to nobody.
    let run = proxied(
        "cat >/dev/null; printf '{\"id\":99,\"result\":{}}\\n'; exit 3",
        &[
            b"{\"id\":1,\"method\":\"a\"}\n{\"id\":1,\"method\":\"b\"}\n",
            b"{\"id\":\"1\",\"method\":\"c\",\"error\":\"x\",\"params\":{\"n\":NaN}}\n",
            b"[{\"id\":5,\"method\":\"d\"},{\"method\":\"n\"},7]\nnoise\n\n",
            b"{\"id\":6,\"method\":\"tools/call\",\"params\":{\"name\":\"evil\",\"NAME\":\"safe\"}}",
        ],
    );
    assert_eq!(run.code, 3);
    assert_eq!(
        run.methods(),
        [
            "n",
            own::NOT_A_MESSAGE,
            own::UNPARSEABLE,
            own::UNMATCHED_RESPONSE,
            "a",
            "b",
            "c",
            "d",
            "tools/call"
        ]
    );
    for entry in &run.entries[4..] {
        assert_eq!(entry.direction, Direction::ServerToClient);
        assert_eq!(
            entry.error.as_deref(),
            Some(
                &br#"{"code":-32001,"message":"no response","data":{"countersign":"no_response","reason":"the server ended with code 3"}}"#[..]
            )
        );
    }
    assert_eq!(run.entries[8].tool_name.as_deref(), Some("evil"));
    assert_eq!(run.entries[6].params.as_deref(), Some(&br#"{"n":NaN}"#[..]));
    assert_eq!(run.entries[3].request_id.as_deref(), Some("99"));
}

#[test]
fn requests_of_the_server_are_logged_when_the_client_answers() {
    let run = proxied(
        r#"printf '{"id":"srv-1","method":"sampling/createMessage","params":{"maxTokens":5}}\n'; read -r answer"#,
        &[
            AFTER_OUTPUT,
            b"{\"id\":\"srv-1\",\"error\":{\"code\":-1,\"message\":\"no\",\"data\":{\"secret\":1}}}\n",
        ],
    );
    let [entry] = run.entries.as_slice() else {
        panic!("{:?}", run.entries)
    };
    assert_eq!(entry.direction, Direction::ClientToServer);
    assert_eq!(entry.method, "sampling/createMessage");
    assert_eq!(
        entry.error.as_deref(),
        Some(&br#"{"code":-1,"message":"no","data":{"secret":"[REDACTED]"}}"#[..])
    );
}

#[test]
fn sixteen_mebibytes_pass_untouched_and_are_logged() {
    let mut message = br#"{"method":"big","params":{"x":""#.to_vec();
    message.resize(message.len() + (16 << 20), b'a');
    message.extend_from_slice(b"\"}}\n");
    let run = proxied("cat", &[&message]);
    assert!(run.output == message);
    assert_eq!(run.methods(), ["big", "big"]);
    let directions: Vec<_> = run.entries.iter().map(|entry| entry.direction).collect();
    assert_eq!(
        directions,
        [Direction::ClientToServer, Direction::ServerToClient]
    );
}

#[test]
fn a_line_without_end_is_forwarded_and_logged_by_its_hash() {
    let piece = vec![b' '; 1 << 20];
    let pieces: Vec<&[u8]> = (0..66).map(|_| piece.as_slice()).collect();
    let run = proxied("wc -c", &pieces);
    assert_eq!(
        String::from_utf8_lossy(&run.output).trim(),
        (66 << 20).to_string()
    );
    assert!(
        run.methods().contains(&own::OVERSIZED),
        "{:?}",
        run.methods()
    );
}

#[test]
fn a_server_that_dies_ends_the_proxy_with_its_signal() {
    let run = proxied("kill -9 $$", &[]);
    assert_eq!(run.code, 128 + 9);
}

#[test]
fn output_that_a_left_behind_process_holds_open_does_not_hold_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let script = "sleep 3 & echo '{\"method\":\"bye\"}'";
    let mut proxy = Proxy::open(args(&dir.path().join("log"), script), key()).unwrap();
    proxy.output_grace = Duration::from_millis(50);
    let (mut output, output_writer) = std::io::pipe().unwrap();
    let started = Instant::now();
    let ends = Ends {
        input: File::open("/dev/null").unwrap(),
        output: File::from(OwnedFd::from(output_writer)),
    };
    assert_eq!(proxy.serve(ends, &Server::default()).unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(3));
    let mut seen = [0; 16];
    output.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"{\"method\":\"bye\"}");
}

#[test]
fn a_log_that_cannot_be_written_stops_the_traffic() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::open(args(&dir.path().join("log"), "cat"), key()).unwrap();
    // Open for reading only: every write fails.
    proxy.log_file = File::open("/dev/null").unwrap();
    let lines: Vec<_> = (0..100)
        .map(|n| format!("{{\"method\":\"m{n}\"}}\n"))
        .collect();
    let pieces: Vec<_> = lines.iter().map(String::as_bytes).collect();
    let (output, code) = serve(proxy, &pieces);
    assert_eq!(code, EXIT_LOG_FAILED);
    // The queue holds four lines; what it cannot take is not forwarded.
    let forwarded = memchr::memchr_iter(b'\n', &output).count();
    assert!(
        forwarded <= 6,
        "{forwarded} lines were forwarded, none was logged"
    );
}

#[test]
fn failing_open_forwards_what_cannot_be_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(&dir.path().join("log"), "cat");
    args.fail_open = true;
    let mut proxy = Proxy::open(args, key()).unwrap();
    proxy.log_file = File::open("/dev/null").unwrap();
    let (output, code) = serve(proxy, &[b"{\"method\":\"a\"}\n", b"{\"method\":\"b\"}\n"]);
    assert_eq!(code, 0);
    assert_eq!(output, b"{\"method\":\"a\"}\n{\"method\":\"b\"}\n");
}

#[test]
fn links_fifos_and_open_logs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    std::fs::write(&target, b"").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o600),
        0,
    )
    .unwrap();
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o622)).unwrap();
    for path in [&link, &fifo, &target, &dir.path().to_owned()] {
        assert!(super::files::open_log(path).is_err(), "{}", path.display());
    }
    let fresh = dir.path().join("fresh");
    super::files::open_log(&fresh).unwrap();
    assert_eq!(
        fresh.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_torn_last_line_stays_apart_from_new_entries() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, b"{\"id\":\"torn").unwrap();
    std::fs::set_permissions(&log, PermissionsExt::from_mode(0o600)).unwrap();
    let proxy = Proxy::open(args(&log, "cat"), key()).unwrap();
    serve(proxy, &[b"{\"method\":\"a\"}\n"]);
    let items = read_log(&log);
    assert!(matches!(items[0], LogItem::Bad(_)));
    assert_eq!(
        items
            .iter()
            .filter(|item| matches!(item, LogItem::Entry(_)))
            .count(),
        2
    );
}

#[test]
fn keys_come_from_files_and_descriptors_only_and_not_if_all_can_read_them() {
    use std::os::fd::IntoRawFd as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, b"a test key\n").unwrap();
    let signed = signature::Signed {
        id: "i",
        timestamp: "t",
        method: "m",
        tool_name: None,
        params: None,
    };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let load = |key_file: Option<&Path>, key_fd| {
        let key_file = key_file.map(Path::to_owned);
        KeyArgs { key_file, key_fd }.load()
    };
    let wanted = key().sign(&signed);
    assert_eq!(load(Some(&path), None).unwrap().sign(&signed), wanted);
    let fd = File::open(&path).unwrap().into_raw_fd();
    assert_eq!(load(None, Some(fd)).unwrap().sign(&signed), wanted);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load(Some(&path), None).is_err(), "a key that all can read");
    assert!(load(None, Some(0)).is_err());
    assert!(load(None, Some(1_000_000)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn bytes_pass_untouched_however_they_are_cut(
        bytes in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'{'), any::<u8>()], 0..5000),
        chunk in 1usize..700,
    ) {
        let chunks: Vec<_> = bytes.chunks(chunk).collect();
        let run = proxied("cat", &chunks);
        prop_assert_eq!(run.output, bytes);
        prop_assert_eq!(run.code, 0);
    }
}

/// Runs a shell script as the server and checks that every line of the log is an entry that verifies.
fn proxied(script: &str, input: &[&[u8]]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.jsonl");
    let (output, code) = serve(Proxy::open(args(&log, script), key()).unwrap(), input);
    let entries: Vec<_> = read_log(&log)
        .into_iter()
        .map(|item| match item {
            LogItem::Entry(entry) => *entry,
            LogItem::Bad(bad) => panic!("{bad:?}"),
        })
        .collect();
    for entry in &entries {
        let state = signature::verify(entry, Some(&key()), None);
        assert_eq!(state, SignatureState::ValidDisk, "{entry:?}");
    }
    assert!(entries.is_sorted_by(|a, b| a.id < b.id));
    Run {
        output,
        code,
        entries,
    }
}

fn serve(proxy: Proxy, input: &[&[u8]]) -> (Vec<u8>, u8) {
    let (input_reader, mut input_writer) = std::io::pipe().unwrap();
    let (mut output_reader, output_writer) = std::io::pipe().unwrap();
    let ends = Ends {
        input: File::from(OwnedFd::from(input_reader)),
        output: File::from(OwnedFd::from(output_writer)),
    };
    let (first_output, has_output) = mpsc::channel();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut output = vec![0];
            match output_reader.read(&mut output).unwrap() {
                0 => output.clear(),
                _ => first_output.send(()).unwrap_or_default(),
            }
            drop(first_output);
            output_reader.read_to_end(&mut output).unwrap();
            output
        });
        scope.spawn(move || {
            let has_output = has_output;
            for piece in input {
                if *piece == AFTER_OUTPUT {
                    // Ends when there is output, or with the output.
                    let _ = has_output.recv();
                    continue;
                }
                // The server may be gone; that is the test's business.
                if input_writer.write_all(piece).is_err() {
                    return;
                }
            }
        });
        let code = proxy.serve(ends, &Server::default()).unwrap();
        (reading.join().unwrap(), code)
    })
}

fn read_log(path: &Path) -> Vec<LogItem> {
    let mut reader = Reader::new();
    reader.push(&std::fs::read(path).unwrap());
    reader.finish();
    std::iter::from_fn(|| reader.poll()).collect()
}

fn args(log: &Path, script: &str) -> Args {
    Args {
        log: log.to_owned(),
        key: KeyArgs {
            key_file: None,
            key_fd: None,
        },
        client_id: "c".to_owned(),
        server_id: "s".to_owned(),
        redact_keys: Vec::new(),
        no_redact: false,
        fail_open: false,
        queue: NonZeroUsize::new(4).unwrap(),
        command: ["sh", "-c", script].map(Into::into).to_vec(),
    }
}

fn key() -> Key {
    Key::new(SECRET.to_vec()).unwrap()
}
