//! Calls: requests with their answers, notifications, stray answers, as their senders made them.
//!
//! Owns the way of messages over the legs of a proxied session ([`passage`]) and the pairing of requests with answers
//! ([`exchange`]). A call ends here with everything that was seen of it; what a proxy's log says of it comes later.

mod cut;
pub mod exchange;
mod on_lines;
pub mod passage;
mod relay;
pub mod scene;
pub mod tail;
mod trouble;

use std::sync::Arc;

use crate::evidence::Placed;
use crate::message::{Message, MessageKind};
use crate::process::ProcessIx;
use crate::role::InstanceIx;
use crate::time::BootNs;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Way {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ToServer => "client_to_server",
            Self::ToClient => "server_to_client",
        }
    }

    /// The other way.
    #[must_use]
    pub fn back(self) -> Self {
        match self {
            Self::ToServer => Self::ToClient,
            Self::ToClient => Self::ToServer,
        }
    }
}

/// How a message travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Through a proxy, which read it and may have forwarded it.
    Proxy(InstanceIx),
    /// Made by the proxy itself: it wrote it without having read it.
    ProxyOwn(InstanceIx),
    /// Into a proxy's channel, past the proxy.
    Foreign(InstanceIx),
    /// Between two processes without a proxy, in a fixed order so that both ways are one session.
    Direct(Option<ProcessIx>, Option<ProcessIx>),
}

impl Route {
    /// The proxy instance that a message passed or that its channel belongs to.
    pub fn instance(self) -> Option<InstanceIx> {
        match self {
            Self::Proxy(ix) | Self::ProxyOwn(ix) | Self::Foreign(ix) => Some(ix),
            Self::Direct(..) => None,
        }
    }
}

/// What the legs of a message's way tell of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hops {
    /// Every leg shows the same bytes.
    Equal,
    /// The legs show different content.
    Changed,
    /// A leg is missing.
    Missing,
    /// One leg is all there is.
    Single,
}

impl Hops {
    /// Name as stored in the evidence; `None` where there is nothing to compare.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Equal => Some("equal"),
            Self::Changed => Some("changed"),
            Self::Missing => Some("missing"),
            Self::Single => None,
        }
    }
}

/// Index into the placed deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacedIx(pub u32);

/// One message on one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The delivery.
    pub placed: PlacedIx,
    /// Place in its frame.
    pub element: u32,
}

/// Why a message that a proxy passed is not what its receiver or its sender had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A reader that takes a carriage return for a line end finds another message in it.
    ReadDifferently,
    /// Somebody else than the server wrote it into the server's channel to the proxy.
    ForeignAuthor,
    /// Somebody else than the server took it out of the proxy's channel to the server.
    TakenByAnother,
    /// Others wrote into the channel, and what the server read there is not what the proxy wrote.
    RunTogether,
    /// Its receiver has it, and the proxy's write had not returned when the capture ended.
    OnItsWay,
}

impl Trouble {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadDifferently => "read_differently",
            Self::ForeignAuthor => "foreign_author",
            Self::TakenByAnother => "taken_by_another",
            Self::RunTogether => "run_together",
            Self::OnItsWay => "after_end",
        }
    }
}

/// One message on its way.
#[derive(Clone, Debug)]
pub struct Passage {
    /// How it travelled.
    pub route: Route,
    /// Which way.
    pub way: Way,
    /// The message as its sender's leg shows it (for a stray one, as its only leg does).
    pub message: Message,
    /// On the sender's leg.
    pub sent: Option<Sighting>,
    /// On the receiver's leg.
    pub received: Option<Sighting>,
    /// What the legs tell of each other.
    pub hops: Hops,
    /// First byte on the first leg seen.
    pub at: BootNs,
    /// Last byte on the last leg seen.
    pub until: BootNs,
    /// All bytes of both legs are there, in proved order.
    pub proved: bool,
    /// Why it is not what its receiver or its sender had.
    pub trouble: Option<Trouble>,
}

impl Passage {
    /// The leg whose bytes the message's spans refer to.
    pub fn primary(&self) -> Option<Sighting> {
        self.sent.or(self.received)
    }
}

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// How its request (or its only message) travelled.
    pub route: Route,
    /// Which way its request (or its only message) went.
    pub way: Way,
    /// The request or notification; `None` for a stray answer.
    pub request: Option<Arc<Passage>>,
    /// The answer.
    pub response: Option<Arc<Passage>>,
    /// Another request with the same id was in flight when this one was sent, or this was in flight then.
    pub duplicate_in_flight: bool,
}

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A request, answered or not.
    Request,
    /// A notification.
    Notification,
    /// An answer to nothing.
    ResponseWithoutRequest,
}

impl CallKind {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Notification => "notification",
            Self::ResponseWithoutRequest => "response_without_request",
        }
    }
}

impl Call {
    /// What it is.
    pub fn kind(&self) -> CallKind {
        match &self.request {
            Some(request) if request.message.kind == MessageKind::Notification => {
                CallKind::Notification
            }
            Some(_) => CallKind::Request,
            None => CallKind::ResponseWithoutRequest,
        }
    }

    /// The message that stands for the call: the request, else the stray answer.
    pub fn subject(&self) -> Option<&Passage> {
        self.request.as_deref().or(self.response.as_deref())
    }

    /// When it began.
    pub fn at(&self) -> BootNs {
        self.subject().map_or(BootNs(0), |passage| passage.at)
    }

    /// When the last that was seen of it ended.
    pub fn until(&self) -> BootNs {
        let request = self.request.as_ref().map(|passage| passage.until);
        let response = self.response.as_ref().map(|passage| passage.until);
        request.max(response).unwrap_or_default()
    }

    /// The worst that the legs of request and answer tell.
    pub fn hops(&self) -> Hops {
        let each = [self.request.as_ref(), self.response.as_ref()];
        let has = |hops| each.iter().flatten().any(|passage| passage.hops == hops);
        let worst = [Hops::Changed, Hops::Missing, Hops::Equal];
        let found = worst.into_iter().find(|hops| has(*hops));
        found.unwrap_or(Hops::Single)
    }

    /// Its method.
    pub fn method(&self) -> Option<&str> {
        self.request
            .as_ref()
            .and_then(|passage| passage.message.method.as_deref())
    }
}

/// Bytes of a frame by its placed delivery.
pub fn bytes_of<'a>(
    placed: &[Placed],
    frames: &'a [crate::frame::Frame],
    sighting: Sighting,
) -> Option<&'a [u8]> {
    let record = placed.get(sighting.placed.0 as usize)?.record;
    Some(frames.get(record.0 as usize)?.bytes.as_slice())
}
