//! What the kernel programs say to people: it arrives, once, and says nothing of payload.

use std::{
    fmt,
    sync::{Mutex, Once},
};

use countersign::bpf::{options::LoadOptions, tier::Tier};
use countersign_common::{counter, tag};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::harness::{pipe, tier, witness_with, write};

/// What was said so far, to anyone: programs are loaded for those who listen, and `tracing` remembers who that is for the
/// whole program.
static HEARD: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// Listens to the kernel programs from now on.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Ear).expect("nobody else listens"));
}

/// Takes messages of the kernel programs.
struct Ear;

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "countersign::kernel"
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = *event.metadata().level();
        HEARD.lock().unwrap().push((level, text.0));
    }

    fn new_span(&self, _attributes: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[test]
fn a_full_ring_and_work_that_is_not_decoded_are_said_once_each() {
    let options = LoadOptions {
        ring_bytes: 1 << 16,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let child = witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        // Requests that ask for no completion.
        let mut ring = crate::ring::Ring::new(0);
        for _ in 0..2 {
            let mut entry = crate::ring::submission(crate::ring::op::WRITE, write_end, b"#");
            entry.flags = crate::ring::IOSQE_CQE_SKIP_SUCCESS;
            ring.run(&[entry], 0);
        }
        assert_eq!(crate::harness::read(read_end, 2), b"##");
        // Each record takes half the ring, and two do not fit at once: also with a consumer at work, some is lost.
        let mut bytes = vec![b'#'; 32768];
        for _ in 0..1000 {
            assert_eq!(write(write_end, &bytes), 32768);
            // SAFETY: a buffer and its length.
            assert_eq!(
                unsafe { libc::read(read_end, bytes.as_mut_ptr().cast(), 32768) },
                32768
            );
        }
    });
    let unseen = tier() == Tier::Tracepoints;
    assert_eq!(
        witness.counter(counter::UNSEEN_SUBMISSIONS),
        if unseen { 2 } else { 0 }
    );
    assert!(witness.counter(counter::RING_DROPPED_RECORDS) > 1);
    witness.capture.tell();
    let heard = HEARD.lock().unwrap().clone();
    let of = |words: &str| {
        heard
            .iter()
            .filter(|(level, text)| *level == Level::WARN && text.contains(words))
            .filter(|(_, text)| text.contains(&format!("process {child}")))
            .count()
    };
    // A CPU of its own may say it once more.
    let said = if unseen { 1..=2 } else { 0..=0 };
    assert!(said.contains(&of("io_uring")), "{heard:?}");
    assert!((1..=2).contains(&of("the ring is full")), "{heard:?}");
    assert!(!heard.iter().any(|(_, text)| text.contains('#')));
}
