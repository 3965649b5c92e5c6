//! The list of methods.

use std::{io, os::fd::RawFd};

use countersign_tests::exercise::Side;

use crate::{aio, carriers::Carrier, compat, plain, spliced, uring};

/// One call, as often as need be: moves bytes between the descriptor and the buffer and says how many.
pub(crate) type Call = fn(RawFd, &mut [u8]) -> io::Result<usize>;

/// A way to move bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) way: Way,
    pub(crate) sizes: Sizes,
}

/// Who makes the calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// This process, on the descriptor that it made.
    Call(Call),
    /// A plain `read` or `write`, but the end came another way.
    Carried(Carrier),
}

/// With which tokens a method is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// The smallest.
    Line,
    /// Those that one call can move: the method does not consume, or cannot be repeated.
    OneCall,
    /// All.
    All,
}

/// A method for all sizes.
pub(crate) const fn all(name: &'static str, call: Call) -> Method {
    Method {
        name,
        way: Way::Call(call),
        sizes: Sizes::All,
    }
}

/// A method that leaves the bytes where they are, or takes more than it returns.
pub(crate) const fn one_call(name: &'static str, call: Call) -> Method {
    Method {
        name,
        way: Way::Call(call),
        sizes: Sizes::OneCall,
    }
}

/// Every method of a side.
pub(crate) fn methods(side: Side) -> Vec<Method> {
    let tables: [&[Method]; 5] = match side {
        Side::Send => [
            plain::SENDS,
            uring::SENDS,
            aio::SENDS,
            compat::SENDS,
            spliced::SENDS,
        ],
        Side::Receive => [
            plain::RECEIVES,
            uring::RECEIVES,
            aio::RECEIVES,
            compat::RECEIVES,
            spliced::RECEIVES,
        ],
    };
    let carried = Carrier::ALL.map(|(name, carrier, sizes)| Method {
        name,
        way: Way::Carried(carrier),
        sizes,
    });
    tables.concat().into_iter().chain(carried).collect()
}
