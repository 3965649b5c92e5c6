//! Tails: what one end of a stream shows at its end and the other does not.
//!
//! Owns the questions what was taken out of a stream, whether a reader ended within a line that the proxy wrote, and whether a
//! write was still on its way when the capture ended: its bytes are recorded when it returns, and a reader has them before.

use ahash::AHashMap;

use super::scene::{Scene, frame};
use super::{PlacedIx, Way};
use crate::delivery::StreamFrames;
use crate::evidence::{Author, Placed};
use crate::frame::{Frame, FrameFlags};
use crate::role::{InstanceIx, Leg};

/// Whether the line that a reader ended in is the beginning of one that the proxy alone wrote at the same place, or goes on where
/// the proxy's write was cut off.
pub(super) fn is_of_proxys_line(scene: Scene<'_>, placed: &Placed, instance: InstanceIx) -> bool {
    let frame = &scene.frames[placed.record.0 as usize];
    let Some(stream) = scene.streams.get(&placed.stream) else {
        return false;
    };
    // One line for each end of a stream: so this looks through all lines only once.
    frame.flags.contains(FrameFlags::UNTERMINATED)
        && frame.is_whole()
        && stream
            .written_at(frame.position, scene.frames)
            .any(|written| {
                let by_proxy = |process| scene.roles.instance_of(process) == Some(instance);
                let goes_on = written.flags.contains(FrameFlags::UNTERMINATED)
                    && is_unfinished(frame)
                    && frame.bytes.starts_with(&written.bytes);
                written.by.iter().all(|process| by_proxy(*process))
                    && (goes_on || written.bytes.starts_with(&frame.bytes))
            })
}

/// Of the lines that a proxy read and did not pass on as far as was seen, the one that its receiver has in a line that nobody was
/// seen to write: of a write of the proxy that had not returned when the capture ended. So it lies behind all that was written,
/// and the proxy was not seen to end.
pub(super) fn on_its_way(
    scene: Scene<'_>,
    ix: PlacedIx,
    instance: InstanceIx,
    waiting: &mut AHashMap<u64, Vec<PlacedIx>>,
) -> Option<PlacedIx> {
    let placed = &scene.placed[ix.0 as usize];
    let text = frame(scene, ix);
    let possible = placed.author == Author::Unseen
        && scene.roles.instance(instance).to.is_none()
        && lies_behind(scene, placed, text);
    let stack = waiting.get_mut(&text.hash).filter(|_| possible)?;
    let at = stack.iter().position(|read| {
        scene.placed[read.0 as usize].at <= placed.until && frame(scene, *read).is_same_text(text)
    })?;
    Some(stack.remove(at))
}

/// Whether a line ends behind all that was seen to be written into its stream.
pub fn lies_behind(scene: Scene<'_>, placed: &Placed, frame: &Frame) -> bool {
    let written = scene
        .streams
        .get(&placed.stream)
        .map_or(0, StreamFrames::bytes_written);
    scene.channels.channel(placed.stream.channel).created
        && frame.position.saturating_add(frame.len) > written
}

/// Whether the processes at the reading end have taken this line out of the channel by the count of their bytes, whatever their
/// memory shows.
pub(super) fn taken(scene: Scene<'_>, placed: &Placed) -> bool {
    let frame = &scene.frames[placed.record.0 as usize];
    let counted = scene.channels.channel(placed.stream.channel).created;
    let read = scene
        .streams
        .get(&placed.stream)
        .map_or(0, StreamFrames::bytes_read);
    counted && read >= frame.position.saturating_add(frame.len)
}

/// Whether what a proxy passes on this way can be seen: it used such a leg, or holds the channels for it.
pub(super) fn goes_on_watched(scene: Scene<'_>, instance: InstanceIx, way: Way) -> bool {
    let proxy = scene.roles.instance(instance).process;
    match way {
        // Nothing forwarded leaves a leg without a stream; but who made pipes for its server would have used them.
        Way::ToServer => {
            scene.roles.has_leg(Leg::ProxyToServer(instance))
                || scene.roles.has_leg(Leg::ServerToProxy(instance))
                || scene
                    .channels
                    .iter()
                    .any(|(_, channel)| channel.creator() == Some(proxy))
        }
        Way::ToClient => scene.roles.has_leg(Leg::ProxyToClient(instance)),
    }
}

fn is_unfinished(frame: &Frame) -> bool {
    crate::message::parse_stream(&frame.bytes).is_err()
}
