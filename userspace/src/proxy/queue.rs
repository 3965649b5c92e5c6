//! A queue of log lines that is bounded in lines and in bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most bytes that wait to be written. One line larger than this may wait alone.
const QUEUE_MAX_BYTES: usize = 128 << 20;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    lines_max: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(lines_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            lines_max: lines_max.max(1),
        }
    }

    /// Appends a line. If the queue is full: waits, or with `fail_open` gives the line up. False if it
    /// was given up, or the queue is closed.
    pub(super) fn push(&self, line: Vec<u8>, fail_open: bool) -> bool {
        let mut state = self.lock();
        while !state.closed
            && !state.lines.is_empty()
            && (state.lines.len() >= self.lines_max || state.bytes + line.len() > QUEUE_MAX_BYTES)
        {
            if fail_open {
                return false;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        self.changed.notify_all();
        true
    }

    /// The next line; waits for one. `None` once closed and empty.
    pub(super) fn pop(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                self.changed.notify_all();
                return Some(line);
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more lines; those in the queue can still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn a_full_queue_gives_up_lines_only_when_it_fails_open() {
        let queue = Queue::new(1);
        assert!(queue.push(vec![1], true));
        assert!(!queue.push(vec![2], true));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.push(vec![3], false));
            assert_eq!(queue.pop(), Some(vec![1]));
            assert_eq!(queue.pop(), Some(vec![3]));
            assert!(waiting.join().is_ok_and(|pushed| pushed));
        });
        queue.close();
        assert!(!queue.push(vec![4], false));
        assert_eq!(queue.pop(), None);
    }
}
