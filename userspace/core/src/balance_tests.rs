#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use zerocopy::FromZeros;

use super::*;
use crate::channel::ChannelIx;
use crate::process::ProcessIx;

const STREAM: StreamIx = StreamIx {
    channel: ChannelIx(0),
    from_end: 0,
};

fn born() -> Balances {
    let mut balances = Balances::default();
    balances.made(STREAM, BootNs(0), 1);
    balances
}

fn sample(at: u64, [written, read]: [u64; 2], queued: u64, ops: [u64; 2]) -> abi::Queued {
    let mut record = abi::Queued::new_zeroed();
    record.header.boot_ns = at + 1;
    record.begun_ns = at;
    record.channel.epoch = 1;
    [record.written_bytes, record.read_bytes] = [written, read];
    [record.written_ops, record.read_ops] = ops;
    record.queued_bytes = queued;
    record
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

/// End, length, since, until.
fn told(balances: &Balances) -> Vec<(End, u64, u64, u64)> {
    balances
        .unseen()
        .into_iter()
        .map(|(_, unseen)| {
            let gap = unseen.gap;
            (unseen.end, gap.len.unwrap(), gap.since.0, gap.until.0)
        })
        .collect()
}

#[test]
fn what_adds_up_is_no_loss() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 20], 30, [1, 1]), [50, 20]);
    balances.sample(STREAM, &sample(200, [50, 50], 0, [1, 2]), [50, 50]);
    assert_eq!(told(&balances), []);
}

#[test]
fn bytes_that_left_without_a_read_are_missing_at_the_reader_since_the_last_sample() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 50], 0, [1, 1]), [50, 50]);
    balances.sample(STREAM, &sample(200, [90, 60], 0, [2, 2]), [90, 60]);
    balances.sample(STREAM, &sample(300, [95, 65], 0, [3, 3]), [95, 65]);
    assert_eq!(told(&balances), [(End::Reader, 30, 100, 201)]);
}

#[test]
fn bytes_that_came_without_a_write_are_missing_at_the_writer() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [5, 12], 3, [1, 1]), [5, 12]);
    assert_eq!(told(&balances), [(End::Writer, 10, 0, 101)]);
}

#[test]
fn a_write_that_is_blocked_half_way_is_on_its_way_for_all_samples_that_it_spans() {
    let mut balances = born();
    for at in [100, 200, 300] {
        balances.sample(STREAM, &sample(at, [1, 1], 64, [1, 1]), [1, 1]);
    }
    balances.operation(STREAM, End::Writer, 1, &op(50, 350, 100));
    balances.sample(STREAM, &sample(400, [101, 101], 0, [2, 2]), [101, 101]);
    assert_eq!(told(&balances), []);
}

#[test]
fn an_operation_explains_only_what_it_moved_and_only_while_it_was_not_counted() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [1, 1], 64, [1, 1]), [1, 1]);
    // Began after the first sample; was counted by the second.
    balances.operation(STREAM, End::Writer, 1, &op(150, 160, 64));
    assert_eq!(told(&balances), [(End::Writer, 64, 0, 101)]);
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [1, 1], 64, [1, 1]), [1, 1]);
    balances.operation(STREAM, End::Writer, 1, &op(50, 160, 60));
    assert_eq!(told(&balances), [(End::Writer, 4, 0, 101)]);
}

#[test]
fn an_operation_whose_beginning_was_not_seen_may_have_begun_at_any_time() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [1, 1], 64, [1, 1]), [1, 1]);
    let mut late = op(150, 150, 64);
    late.flags = abi::transfer_flags::NO_ENTER;
    balances.operation(STREAM, End::Writer, 1, &late);
    balances.sample(STREAM, &sample(200, [65, 1], 64, [2, 1]), [65, 1]);
    assert_eq!(told(&balances), []);
}

#[test]
fn an_operation_that_was_on_its_way_explains_nothing_once_it_was_counted() {
    let mut balances = born();
    // A server waits in `read`, as they all do, whenever somebody looks.
    for turn in 0..10 {
        let (at, moved) = (100 + turn * 100, turn * 1000);
        balances.sample(STREAM, &sample(at, [moved; 2], 0, [turn; 2]), [moved; 2]);
        balances.operation(STREAM, End::Writer, turn, &op(at + 40, at + 41, 1000));
        balances.operation(STREAM, End::Reader, turn, &op(at - 50, at + 50, 1000));
    }
    balances.sample(
        STREAM,
        &sample(1100, [10_300, 10_000], 0, [11, 10]),
        [10_300, 10_000],
    );
    assert_eq!(told(&balances), [(End::Reader, 300, 1000, 1101)]);
}

#[test]
fn an_operation_whose_record_came_before_the_samples_explains_too() {
    let mut balances = born();
    // 40 bytes were counted as read when the sample's counters had been read.
    balances.sample(STREAM, &sample(100, [50, 10], 0, [1, 1]), [50, 50]);
    assert_eq!(told(&balances), []);
}

#[test]
fn of_a_stream_that_is_older_than_its_counters_only_changes_count() {
    let mut balances = Balances::default();
    balances.sample(STREAM, &sample(100, [0, 70], 3, [1, 1]), [0, 70]);
    balances.sample(STREAM, &sample(200, [5, 78], 0, [2, 2]), [5, 78]);
    assert_eq!(told(&balances), []);
    balances.sample(STREAM, &sample(300, [6, 78], 0, [3, 2]), [6, 78]);
    assert_eq!(told(&balances), [(End::Reader, 1, 200, 301)]);
}

#[test]
fn what_an_end_that_nobody_watched_moved_is_no_news() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 0], 0, [1, 0]), [50, 0]);
    assert_eq!(told(&balances), []);
}

#[test]
fn what_is_left_over_after_the_last_sample_was_not_seen_to_be_read() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 50], 0, [1, 1]), [50, 50]);
    balances.total(STREAM, End::Writer, 2, 90);
    balances.total(STREAM, End::Reader, 1, 50);
    assert_eq!(told(&balances), [(End::Reader, 40, 100, u64::MAX)]);
    // With the queue looked at it was there all the time.
    balances.sample(STREAM, &sample(200, [90, 50], 40, [2, 1]), [90, 50]);
    assert_eq!(told(&balances), []);
}

#[test]
fn a_balance_clears_a_time_only_with_an_even_sample_on_each_side() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 20], 30, [1, 1]), [50, 20]);
    balances.sample(STREAM, &sample(200, [50, 50], 0, [1, 2]), [50, 50]);
    let clears = |balances: &Balances, since, until| {
        balances
            .judged()
            .even_around(STREAM, BootNs(since), BootNs(until))
            .is_some()
    };
    assert!(clears(&balances, 110, 190));
    assert!(!clears(&balances, 110, 210), "nothing after it");
    assert!(clears(&balances, 0, 90), "made at that time");
    balances.sample(STREAM, &sample(300, [60, 50], 0, [2, 2]), [60, 50]);
    balances.sample(STREAM, &sample(400, [70, 60], 0, [3, 3]), [70, 60]);
    assert!(clears(&balances, 110, 190));
    assert!(!clears(&balances, 210, 290), "bytes are missing there");
    assert!(
        !clears(&balances, 310, 390),
        "it begins where bytes are missing"
    );
    balances.sample(STREAM, &sample(500, [70, 60], 0, [3, 3]), [70, 60]);
    assert!(clears(&balances, 410, 490));
}

#[test]
fn counters_that_began_anew_accuse_nobody() {
    let mut balances = born();
    balances.sample(STREAM, &sample(100, [50, 50], 0, [5, 5]), [50, 50]);
    balances.sample(STREAM, &sample(200, [10, 60], 0, [1, 6]), [60, 60]);
    balances.sample(STREAM, &sample(300, [20, 70], 0, [2, 7]), [70, 70]);
    assert_eq!(told(&balances), []);
}

proptest::proptest! {
    #[test]
    fn no_samples_and_operations_make_it_panic_or_keep_more_than_its_limit(
        steps in proptest::collection::vec((0u8..4, proptest::num::u64::ANY, proptest::num::u64::ANY, 0u64..20), 0..200)
    ) {
        let mut balances = Balances::default();
        for (what, a, b, small) in steps {
            match what {
                0 => balances.made(STREAM, BootNs(a), small),
                1 => balances.sample(STREAM, &sample(a.min(u64::MAX - 1), [b, a], small, [small, b]), [a, b]),
                2 => balances.operation(STREAM, End::Writer, small, &op(a, b, u64::MAX)),
                _ => balances.total(STREAM, End::Reader, small, a),
            }
        }
        balances.unseen();
        balances.judged().even_around(STREAM, BootNs(5), BootNs(1 << 40));
    }

    /// Two processes move bytes; everything is counted, though not at the moment in which it moves.
    #[test]
    fn whatever_is_counted_late_an_honest_stream_adds_up(
        steps in proptest::collection::vec((0u8..4, 1u64..50), 1..120)
    ) {
        let mut balances = born();
        let (mut now, mut queue) = (10, 0u64);
        let (mut bytes, mut ops) = ([0u64; 2], [0u64; 2]);
        // Moved and not yet counted, by side: since when, how much.
        let mut open: [Option<(u64, u64)>; 2] = [None; 2];
        for (what, amount) in steps {
            now += 10;
            match what {
                side @ (0 | 1) => {
                    let side = usize::from(side);
                    let end = [End::Writer, End::Reader][side];
                    match open[side].take() {
                        Some((enter, moved)) => {
                            balances.operation(STREAM, end, ops[side], &op(enter, now, moved));
                            bytes[side] += moved;
                            ops[side] += 1;
                        }
                        None if side == WRITER => {
                            queue += amount;
                            open[side] = Some((now, amount));
                        }
                        None => {
                            let moved = amount.min(queue);
                            queue -= moved;
                            if moved > 0 {
                                open[side] = Some((now, moved));
                            }
                        }
                    }
                }
                _ => balances.sample(STREAM, &sample(now, bytes, queue, ops), bytes),
            }
        }
        for (side, end) in [End::Writer, End::Reader].into_iter().enumerate() {
            if let Some((enter, moved)) = open[side] {
                balances.operation(STREAM, end, ops[side], &op(enter, now + 10, moved));
            }
        }
        proptest::prop_assert_eq!(told(&balances), []);
    }
}

#[test]
fn what_waited_says_how_far_the_readers_count_is_ahead() {
    let mut balances = Balances::default();
    assert_eq!(balances.shift(STREAM), None, "nothing was looked at");
    balances.sample(STREAM, &sample(100, [10, 5], 64, [1, 1]), [10, 5]);
    assert_eq!(balances.shift(STREAM), Some((59, 59)));
    balances.sample(STREAM, &sample(200, [10, 25], 44, [1, 2]), [10, 25]);
    balances.operation(STREAM, End::Reader, 1, &op(50, 150, 20));
    assert_eq!(balances.shift(STREAM), Some((59, 59)));
    balances.sample(STREAM, &sample(300, [10, 25], 45, [1, 2]), [10, 25]);
    assert_eq!(balances.shift(STREAM), None, "a byte came from nowhere");
}

#[test]
fn a_read_that_is_on_its_way_may_have_taken_its_bytes_already() {
    let mut balances = Balances::default();
    balances.sample(STREAM, &sample(100, [10, 5], 64, [1, 1]), [10, 5]);
    balances.operation(STREAM, End::Reader, 1, &op(50, 150, 20));
    assert_eq!(balances.shift(STREAM), Some((59, 79)));
}
