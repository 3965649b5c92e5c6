//! Trouble: signs that a message which a proxy passed is not the one that its receiver or its sender had.
//!
//! Owns the questions that bytes alone do not answer: who was at the far end, and how else the line can be read. It judges
//! nothing; a call that is in trouble is not matched.

use super::scene::Scene;
use super::{Sighting, Trouble};
use crate::channel::End;
use crate::evidence::{Author, Placed};
use crate::frame::FrameIx;
use crate::message::{self, MessageKind};
use crate::process::ProcessIx;
use crate::role::Leg;
use crate::stream::Gap;

/// The first trouble of a message on its legs.
pub(super) fn of(
    scene: Scene<'_>,
    sent: Option<Sighting>,
    received: Option<Sighting>,
) -> Option<Trouble> {
    let placed = |sighting: Option<Sighting>| {
        sighting.and_then(|sighting| scene.placed.get(sighting.placed.0 as usize))
    };
    let (sent, received) = (placed(sent), placed(received));
    let text = sent
        .or(received)
        .and_then(|placed| scene.frames.get(placed.record.0 as usize));
    if text.is_some_and(|frame| reads_differently(&frame.bytes)) {
        return Some(Trouble::ReadDifferently);
    }
    if sent.is_some_and(|placed| has_foreign_author(scene, placed)) {
        return Some(Trouble::ForeignAuthor);
    }
    let received = received?;
    if was_taken(scene, received) {
        return Some(Trouble::TakenByAnother);
    }
    if received.author == Author::Unseen && received.leg.proxy_writes() {
        return Some(Trouble::OnItsWay);
    }
    was_run_together(scene, received).then_some(Trouble::RunTogether)
}

/// Half a line from somebody else makes the proxy's next one part of another line. A server that writes there itself buys no doubt
/// by it, nor does one that was not seen to read these bytes.
fn was_run_together(scene: Scene<'_>, placed: &Placed) -> bool {
    if !matches!(placed.leg, Leg::ProxyToServer(_)) || !scene.roles.is_intruded(placed.stream) {
        return false;
    }
    let (Some(written), None, Some(stream)) = (
        placed.delivery.written,
        placed.delivery.read,
        scene.streams.get(&placed.stream),
    ) else {
        return false;
    };
    let Some(frame) = scene.frames.get(written.0 as usize) else {
        return false;
    };
    let end = frame.position.saturating_add(frame.len);
    if stream.bytes_read() < end {
        return false;
    }
    let hides = |gap: &Gap| {
        let gap_end = gap
            .len
            .map_or(u64::MAX, |len| gap.position.saturating_add(len));
        gap.position < end && gap_end > frame.position
    };
    !stream
        .gaps
        .iter()
        .any(|(side, gap)| *side == End::Reader && hides(gap))
}

/// Some runtimes take a lone carriage return for a line end; to JSON it is white space. Harmless unless a piece is a message.
fn reads_differently(line: &[u8]) -> bool {
    if memchr::memchr(b'\r', line).is_none() {
        return false;
    }
    line.split(|byte| *byte == b'\r').any(|piece| {
        message::parse(piece).is_ok_and(|parsed| {
            parsed
                .messages
                .iter()
                .any(|message| message.kind != MessageKind::NotJsonRpc)
        })
    })
}

fn has_foreign_author(scene: Scene<'_>, placed: &Placed) -> bool {
    let outsiders = scene.roles.outsiders(placed.stream);
    if !matches!(placed.leg, Leg::ServerToProxy(_)) || outsiders.is_empty() {
        return false;
    }
    match placed.delivery.written {
        Some(written) => by(scene, written)
            .iter()
            .any(|process| outsiders.contains(process)),
        // Nobody was seen to write it, and somebody was there who had no business to.
        None => true,
    }
}

fn was_taken(scene: Scene<'_>, placed: &Placed) -> bool {
    let outsiders = scene.roles.outsiders(placed.stream);
    if !matches!(placed.leg, Leg::ProxyToServer(_)) || outsiders.is_empty() {
        return false;
    }
    if let Some(read) = placed.delivery.read {
        return by(scene, read)
            .iter()
            .all(|process| outsiders.contains(process));
    }
    let Some(frame) = scene.frames.get(placed.record.0 as usize) else {
        return false;
    };
    let end = frame.position.saturating_add(frame.len);
    scene.streams.get(&placed.stream).is_some_and(|stream| {
        stream.gaps.iter().any(|(side, gap)| {
            let theirs = gap
                .process
                .is_some_and(|process| outsiders.contains(&process));
            let gap_end = gap
                .len
                .map_or(u64::MAX, |len| gap.position.saturating_add(len));
            *side == End::Reader && theirs && gap.position < end && gap_end > frame.position
        })
    })
}

fn by(scene: Scene<'_>, frame: FrameIx) -> &[ProcessIx] {
    scene
        .frames
        .get(frame.0 as usize)
        .map(|frame| frame.by.as_slice())
        .unwrap_or_default()
}
