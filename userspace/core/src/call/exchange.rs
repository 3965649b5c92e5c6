//! Exchanges: requests paired with their answers.
//!
//! Owns the tables of requests in flight, one per session and way, because both sides count ids from the same numbers. Ids
//! are compared as the peers do ([`IdKey`]).

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;

use crate::call::passage::Passages;
use crate::call::{Call, Passage, Route, Way};
use crate::message::{IdKey, MessageKind};
use crate::process::ProcessIx;
use crate::role::{InstanceIx, Roles};

/// Requests of one id among which an answer's is looked for. Stops a client that uses one id for ever and is never answered from
/// making every answer search them all.
const IN_FLIGHT_SEARCHED_MAX: usize = 64;

/// Both sides of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Session {
    Proxy(InstanceIx),
    Direct(Option<ProcessIx>, Option<ProcessIx>),
}

/// Pairs all passages into calls, in order of time.
pub fn pair(passages: &Passages, roles: &Roles) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut in_flight: AHashMap<(Session, Way, IdKey), VecDeque<usize>> = AHashMap::new();
    // Of requests between two processes: by the receiver, where they are in flight.
    let mut asked: AHashMap<(ProcessIx, IdKey), (Session, Way)> = AHashMap::new();
    for passage in &passages.passages {
        let session = session_of(passage.route);
        let id = passage.message.id_key();
        match (passage.message.kind, id) {
            (MessageKind::Request, Some(id)) => {
                let ix = calls.len();
                if let (_, Some(receiver)) = direct_ends(passage) {
                    asked.insert((receiver, id.clone()), (session, passage.way));
                }
                let queue = in_flight.entry((session, passage.way, id)).or_default();
                let duplicate = !queue.is_empty();
                // Those before the last have been told when it came.
                if let Some(other) = queue.back() {
                    calls[*other].duplicate_in_flight = true;
                }
                queue.push_back(ix);
                calls.push(call_of(passage, duplicate));
            }
            // What others wrote to the receiver of answers answers nothing that was asked of the proxy or the server.
            (MessageKind::Response | MessageKind::ErrorResponse, Some(_))
                if matches!(passage.route, Route::Foreign(_)) =>
            {
                calls.push(stray(passage));
            }
            (MessageKind::Response | MessageKind::ErrorResponse, Some(id)) => {
                let known = match direct_ends(passage) {
                    // Nobody was seen to read it; who was asked is enough.
                    (Some(sender), None) => asked.get(&(sender, id.clone())).copied(),
                    (Some(_) | None, _) => None,
                };
                let (session, way) = known.unwrap_or((session, passage.way.back()));
                let key = (session, way, id);
                let request = in_flight
                    .get_mut(&key)
                    .and_then(|queue| take(queue, &calls, passage, roles));
                match request {
                    Some(ix) => calls[ix].response = Some(Arc::clone(passage)),
                    None => calls.push(stray(passage)),
                }
            }
            (MessageKind::Response | MessageKind::ErrorResponse, None) => {
                calls.push(stray(passage));
            }
            (MessageKind::Request | MessageKind::Notification, _) => {
                calls.push(call_of(passage, false));
            }
            (MessageKind::NotJsonRpc, _) => {}
        }
    }
    calls
}

/// Of several requests with one id the first whose own way fits the answer's: one that reached the server, if the answer came
/// from there, one that did not, if the proxy made the answer. One that the proxy sent comes before one that others did: the
/// proxy takes the answer for its own.
///
/// Of several that fit equally it is the last: a peer that uses an id again has given up the request before, and mcp-audit keeps
/// the last one only. Countersign's own proxy lets them queue up.
fn take(
    queue: &mut VecDeque<usize>,
    calls: &[Call],
    answer: &Passage,
    roles: &Roles,
) -> Option<usize> {
    let from_server = answer.sent.is_some() || !matches!(answer.route, Route::ProxyOwn(_));
    let rank = |ix: &usize| -> Option<u8> {
        let request = calls[*ix].request.as_ref()?;
        let proxied = !matches!(calls[*ix].route, Route::Foreign(_));
        let fits = request.at <= answer.until && request.received.is_some() == from_server;
        let place = match (fits, proxied) {
            (true, true) => 0,
            (true, false) => 2,
            (false, true) => 4,
            (false, false) => 6,
        };
        // Ids that are one float64 are one id to many servers; where they are not, the digits tell.
        Some(place + u8::from(request.message.id != answer.message.id))
    };
    let in_order = answer
        .route
        .instance()
        .is_some_and(|instance| roles.instance(instance).own);
    let ranked = |(at, ix): (usize, &usize)| (rank(ix).unwrap_or(u8::MAX), at);
    let at = if in_order {
        queue
            .iter()
            .enumerate()
            .take(IN_FLIGHT_SEARCHED_MAX)
            .map(ranked)
            .min()?
            .1
    } else {
        let last = queue
            .iter()
            .enumerate()
            .rev()
            .take(IN_FLIGHT_SEARCHED_MAX)
            .map(ranked);
        last.min_by_key(|(rank, at)| (*rank, std::cmp::Reverse(*at)))?
            .1
    };
    queue.remove(at)
}

fn call_of(passage: &Arc<Passage>, duplicate_in_flight: bool) -> Call {
    Call {
        route: passage.route,
        way: passage.way,
        request: Some(Arc::clone(passage)),
        response: None,
        duplicate_in_flight,
    }
}

fn stray(passage: &Arc<Passage>) -> Call {
    Call {
        route: passage.route,
        way: passage.way,
        request: None,
        response: Some(Arc::clone(passage)),
        duplicate_in_flight: false,
    }
}

/// Sender and receiver of a message between two processes, as far as seen.
fn direct_ends(passage: &Passage) -> (Option<ProcessIx>, Option<ProcessIx>) {
    match (passage.route, passage.way) {
        (Route::Direct(one, other), Way::ToServer) => (one, other),
        (Route::Direct(one, other), Way::ToClient) => (other, one),
        (Route::Proxy(_) | Route::ProxyOwn(_) | Route::Foreign(_), _) => (None, None),
    }
}

fn session_of(route: Route) -> Session {
    match route {
        Route::Proxy(ix) | Route::ProxyOwn(ix) | Route::Foreign(ix) => Session::Proxy(ix),
        Route::Direct(a, b) => Session::Direct(a, b),
    }
}
