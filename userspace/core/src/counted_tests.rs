#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use zerocopy::FromZeros;

use super::*;
use crate::channel::ChannelIx;
use crate::process::ProcessIx;

const STREAM: StreamIx = StreamIx {
    channel: ChannelIx(0),
    from_end: 0,
};

/// A sample of the writing end: the kernel's count, ours, our operations.
fn sample(counts: &mut KernelCounts, at: u64, moved: u64, bytes: u64, ops: u64) {
    sample_with(counts, at, (moved, bytes, ops), bytes, false);
}

fn sample_with(
    counts: &mut KernelCounts,
    at: u64,
    (moved, bytes, ops): (u64, u64, u64),
    seen: u64,
    may_hold_end: bool,
) {
    let mut record = abi::SocketCounts::new_zeroed();
    record.header.boot_ns = at + 1;
    record.begun_ns = at;
    record.channel.epoch = 1;
    record.written_ops = ops;
    let counted = Counted {
        moved,
        bytes,
        ops,
        may_hold_end,
        seen,
    };
    counts.sample(STREAM, End::Writer, &record, counted);
}

fn op(enter: u64, exit: u64, returned: u64) -> Op {
    Op {
        process: ProcessIx(0),
        tid: 1,
        syscall: 0,
        flags: 0,
        enter: BootNs(enter),
        exit: BootNs(exit),
        returned,
        stream_before: 0,
    }
}

/// Length, since, until.
fn told(counts: &KernelCounts) -> Vec<(u64, u64, u64)> {
    let unseen = counts.unseen().into_iter();
    unseen
        .map(|(_, unseen)| {
            let gap = unseen.gap;
            (gap.len.unwrap(), gap.since.0, gap.until.0)
        })
        .collect()
}

fn clears(counts: &KernelCounts, since: u64, until: u64) -> bool {
    counts
        .judged()
        .clears(STREAM, End::Writer, BootNs(since), BootNs(until))
}

#[test]
fn what_the_kernel_counts_too_is_no_loss_wherever_its_count_begins() {
    for begins in [0, 1] {
        let mut counts = KernelCounts::default();
        sample(&mut counts, 100, begins, 0, 0);
        sample(&mut counts, 200, begins + 50, 50, 3);
        assert_eq!(told(&counts), []);
        assert!(clears(&counts, 10, 190), "nothing moved before the first");
        assert!(!clears(&counts, 10, 210), "nobody looked after that");
    }
}

#[test]
fn bytes_that_only_the_kernel_counts_are_missing_since_the_last_sample_without_them() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 1, 0, 0);
    sample(&mut counts, 200, 51, 50, 1);
    sample(&mut counts, 300, 101, 70, 2);
    sample(&mut counts, 400, 111, 80, 3);
    sample(&mut counts, 500, 116, 80, 3);
    assert_eq!(told(&counts), [(30, 200, 301), (5, 400, 501)]);
    assert!(clears(&counts, 0, 150));
    assert!(!clears(&counts, 210, 290));
}

#[test]
fn an_operation_on_its_way_explains_what_it_moved_and_no_more() {
    // Told by the first sample at which somebody who is watched has used the end.
    for (unseen, wanted) in [(0, vec![]), (4, vec![(4, 100, 401)])] {
        let mut counts = KernelCounts::default();
        sample(&mut counts, 100, 0, 0, 0);
        // It has brought so much in, and waits to bring in the rest.
        sample(&mut counts, 200, 60, 0, 0);
        sample(&mut counts, 300, 100 + unseen, 0, 0);
        counts.operation(STREAM, End::Writer, 0, &op(150, 350, 100));
        sample(&mut counts, 400, 100 + unseen, 100, 1);
        assert_eq!(told(&counts), wanted);
    }
}

#[test]
fn an_operation_whose_record_is_lost_is_no_loss_twice() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 0, 0, 0);
    sample(&mut counts, 200, 60, 0, 0);
    // Its number leaves a hole elsewhere; it was counted, so here nothing is missing.
    sample(&mut counts, 300, 60, 60, 1);
    assert_eq!(told(&counts), []);
}

#[test]
fn an_operation_whose_record_came_before_the_sample_explains_too() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 0, 0, 0);
    sample_with(&mut counts, 200, (60, 20, 1), 60, false);
    assert_eq!(told(&counts), []);
}

#[test]
fn the_end_of_a_direction_is_no_byte() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 1, 0, 0);
    sample_with(&mut counts, 200, (52, 50, 1), 50, true);
    assert_eq!(told(&counts), []);
    assert!(clears(&counts, 0, 190));
    sample_with(&mut counts, 300, (53, 50, 1), 50, true);
    assert_eq!(told(&counts), [(1, 200, 301)]);
}

#[test]
fn what_moved_before_a_connection_was_found_is_not_told_and_not_cleared() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 5000, 3, 1);
    sample(&mut counts, 200, 5010, 13, 2);
    assert_eq!(told(&counts), []);
    assert!(!clears(&counts, 50, 150));
    assert!(clears(&counts, 110, 150));
    sample(&mut counts, 300, 5017, 13, 2);
    assert_eq!(told(&counts), [(7, 200, 301)]);
}

#[test]
fn what_was_on_its_way_when_a_connection_was_found_hides_no_more_than_itself() {
    let mut counts = KernelCounts::default();
    // 40 bytes of an operation that is counted later.
    sample(&mut counts, 100, 5040, 0, 0);
    counts.operation(STREAM, End::Writer, 0, &op(50, 150, 40));
    sample(&mut counts, 200, 5040, 40, 1);
    assert!(!clears(&counts, 110, 190), "as much can have been missed");
    sample(&mut counts, 300, 5065, 40, 1);
    assert_eq!(told(&counts), [(25, 200, 301)]);
}

#[test]
fn an_operation_whose_descriptor_was_swapped_clears_nothing() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 0, 0, 0);
    let swapped = Op {
        flags: abi::transfer_flags::FD_SWAPPED,
        ..op(110, 120, 20)
    };
    counts.operation(STREAM, End::Writer, 0, &swapped);
    sample(&mut counts, 200, 20, 20, 1);
    assert_eq!(told(&counts), []);
    assert!(!clears(&counts, 0, 150));
}

#[test]
fn of_an_end_that_nobody_watched_ever_used_nothing_is_told() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 0, 0, 0);
    sample(&mut counts, 200, 70, 0, 0);
    assert_eq!(told(&counts), []);
    assert!(!clears(&counts, 0, 150));
}

#[test]
fn counters_that_began_anew_are_held_against_themselves() {
    let mut counts = KernelCounts::default();
    sample(&mut counts, 100, 0, 0, 0);
    sample(&mut counts, 200, 50, 50, 5);
    let mut record = abi::SocketCounts::new_zeroed();
    (record.header.boot_ns, record.begun_ns) = (301, 300);
    (record.channel.epoch, record.written_ops) = (2, 1);
    let counted = Counted {
        moved: 90,
        bytes: 10,
        ops: 1,
        may_hold_end: false,
        seen: 0,
    };
    counts.sample(STREAM, End::Writer, &record, counted);
    assert_eq!(told(&counts), []);
    assert!(!clears(&counts, 0, 150), "what was between is not known");
}

#[test]
fn an_urgent_byte_that_a_reader_passes_over_is_none_that_moved_unseen() {
    let mut counts = KernelCounts::default();
    let mut at_reader = |at, moved, bytes, ops| {
        let mut record = abi::SocketCounts::new_zeroed();
        (record.header.boot_ns, record.begun_ns) = (at + 1, at);
        (record.channel.epoch, record.read_ops) = (1, ops);
        let counted = Counted {
            moved,
            bytes,
            ops,
            may_hold_end: false,
            seen: bytes,
        };
        counts.sample(STREAM, End::Reader, &record, counted);
    };
    at_reader(100, 0, 0, 0);
    at_reader(200, 11, 10, 2);
    assert_eq!(told(&counts), [(1, 100, 201)]);
    counts.urgent(STREAM);
    assert_eq!(told(&counts), []);
}

#[test]
fn what_waits_between_two_ends_is_told_if_both_are_known_from_the_beginning() {
    let mut counts = KernelCounts::default();
    let at = |counts: &mut KernelCounts, end, at, moved, bytes, ops, may_hold_end| {
        let mut record = abi::SocketCounts::new_zeroed();
        (record.header.boot_ns, record.begun_ns) = (at + 1, at);
        (record.channel.epoch, record.read_ops) = (1, ops);
        let counted = Counted {
            moved,
            bytes,
            ops,
            may_hold_end,
            seen: bytes,
        };
        counts.sample(STREAM, end, &record, counted);
    };
    at(&mut counts, End::Writer, 100, 1, 0, 0, false);
    assert_eq!(counts.last(STREAM), None);
    at(&mut counts, End::Reader, 110, 0, 0, 0, false);
    // The writer has closed its direction; three bytes of the reader's were seen by nobody.
    at(&mut counts, End::Writer, 200, 52, 50, 2, true);
    at(&mut counts, End::Reader, 210, 13, 10, 1, false);
    assert_eq!(counts.last(STREAM), Some((37, 3)));
    counts.total(STREAM, End::Reader, 1);
    assert_eq!(counts.last(STREAM), Some((37, 3)));
    counts.total(STREAM, End::Reader, 2);
    assert_eq!(counts.last(STREAM), None);
}

proptest::proptest! {
    #[test]
    fn no_samples_and_operations_make_it_panic_or_keep_more_than_its_limit(
        steps in proptest::collection::vec((0u8..3, proptest::num::u64::ANY, proptest::num::u64::ANY, 0u64..20), 0..200)
    ) {
        let mut counts = KernelCounts::default();
        for (what, a, b, small) in steps {
            match what {
                0 => sample_with(&mut counts, a.min(u64::MAX - 1), (b, a, small), b, small % 2 == 0),
                1 => counts.operation(STREAM, End::Writer, small, &op(a, b, u64::MAX)),
                _ => counts.urgent(STREAM),
            }
        }
        counts.unseen();
        clears(&counts, 5, 1 << 40);
    }

    /// A process moves bytes, some of them unseen; everything seen is counted, though not at the moment in which it moves.
    #[test]
    fn whatever_is_counted_late_only_what_was_unseen_is_told_and_in_the_end_all_of_it(
        steps in proptest::collection::vec((0u8..5, 1u64..50), 1..120)
    ) {
        let mut counts = KernelCounts::default();
        let (mut now, mut moved, mut bytes, mut ops, mut missed) = (10, 1u64, 0u64, 0u64, 0u64);
        let mut open: Option<(u64, u64)> = None;
        sample(&mut counts, now, moved, bytes, ops);
        for (what, amount) in steps {
            now += 10;
            match what {
                0 | 1 => if let Some((enter, of_it)) = open.take() {
                    counts.operation(STREAM, End::Writer, ops, &op(enter, now, of_it));
                    bytes += of_it;
                    ops += 1;
                } else {
                    moved += amount;
                    open = Some((now, amount));
                },
                2 => {
                    moved += amount;
                    missed += amount;
                }
                _ => sample(&mut counts, now, moved, bytes, ops),
            }
        }
        if let Some((enter, of_it)) = open {
            counts.operation(STREAM, End::Writer, ops, &op(enter, now + 10, of_it));
            bytes += of_it;
            ops += 1;
        }
        let sum = |counts: &KernelCounts| told(counts).iter().map(|gap| gap.0).sum::<u64>();
        proptest::prop_assert!(sum(&counts) <= missed);
        sample(&mut counts, now + 20, moved, bytes, ops);
        if ops > 0 {
            proptest::prop_assert_eq!(sum(&counts), missed);
        }
    }
}
