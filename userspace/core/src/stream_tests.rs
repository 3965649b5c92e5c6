use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

/// One part of an operation, as a record may have it.
#[derive(Clone, Debug)]
struct Part {
    epoch: u64,
    seq: u64,
    before: u64,
    returned: u64,
    offset: u64,
    len: u64,
    captured: bool,
}

fn part() -> impl Strategy<Value = Part> {
    let number = prop_oneof![0u64..200, Just(u64::MAX), Just(u64::MAX / 2)];
    (
        0u64..2,
        prop_oneof![0u64..8, Just(u64::MAX - 1)],
        number.clone(),
        number,
        0u64..100,
        0u64..100,
        any::<bool>(),
    )
        .prop_map(|(epoch, seq, before, returned, offset, len, captured)| {
            // What the parser lets through: parts within their operation.
            let offset = offset.min(returned);
            Part {
                epoch,
                seq,
                before,
                returned,
                offset,
                len: len.min(returned - offset),
                captured,
            }
        })
}

proptest! {
    #[test]
    fn whatever_records_come_what_moved_is_what_was_captured_and_what_is_missing(
        parts in proptest::collection::vec(part(), 0..100),
        totals in proptest::option::of((0u64..20, 0u64..2000)),
    ) {
        let mut log = EndLog::default();
        let (mut bytes, mut gaps) = (0u64, 0u64);
        let mut out = |item: Item<'_>| match item {
            Item::Bytes { data, .. } => bytes = bytes.saturating_add(data.len() as u64),
            Item::Gap(gap) => gaps = gaps.saturating_add(gap.len.unwrap_or(0)),
        };
        for part in &parts {
            let mut transfer = abi::Transfer::new_zeroed();
            transfer.channel.epoch = part.epoch;
            transfer.op_seq = part.seq;
            transfer.offset = part.offset;
            let op = Op {
                process: ProcessIx(0),
                tid: 0,
                syscall: 0,
                flags: 0,
                enter: BootNs(1),
                exit: BootNs(2),
                returned: part.returned,
                stream_before: part.before,
            };
            let data = vec![0; usize::try_from(part.len).unwrap_or(0)];
            let payload = if part.captured {
                Payload::Bytes(&data)
            } else {
                Payload::Missing { len: part.len, reason: GapReason::Limit }
            };
            log.push(&transfer, op, payload, BootNs(0), &mut out);
            prop_assert!(log.adds_up());
        }
        log.finish(&mut out);
        if let Some((ops, bytes)) = totals {
            log.close(ops, bytes, BootNs(9), &mut out);
        }
        prop_assert!(log.adds_up());
        prop_assert_eq!((bytes, gaps), (log.captured, log.missing));
    }
}
