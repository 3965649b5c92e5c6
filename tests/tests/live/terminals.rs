//! Terminals: those that the tree makes are channels, the one that somebody sits at is none.

use countersign_common::{channel_kind, counter, direction, tag};

use crate::harness::{close, open, pipe, read, spawn, terminal, token, witness, write};

#[test]
fn both_sides_of_a_terminal_that_the_tree_makes_are_seen_from_the_first_byte() {
    let Some(mut witness) = witness() else { return };
    let (question, answer) = (token("question"), token("answer"));
    witness.run(tag::TREE, || {
        let [master, slave] = terminal();
        let (server, gate) = spawn(|| {
            assert_eq!(read(slave, 256), question);
            write(slave, &answer);
        });
        open(gate);
        write(master, &question);
        assert_eq!(read(master, 256), answer);
        // SAFETY: a child of this process.
        unsafe { libc::waitpid(server.cast_signed(), std::ptr::null_mut(), 0) };
    });
    for token in [&question, &answer] {
        let [written, read] =
            [direction::WRITE, direction::READ].map(|end| witness.moved(end, token));
        assert_eq!((written.len(), read.len()), (1, 1), "{:?}", witness.ops());
        let (written, read) = (written[0].first, read[0].first);
        assert_eq!(written.channel.kind, channel_kind::TTY);
        assert_eq!(written.channel.peer_object, read.channel.object);
        assert_eq!(written.channel.peer_inode, read.channel.inode);
        assert_eq!((written.op_seq, read.op_seq), (0, 0));
    }
}

#[test]
fn what_the_line_discipline_changes_is_shown_as_each_side_sees_it() {
    let Some(mut witness) = witness() else { return };
    let token = token("line");
    let line = [&token[..], b"\n"].concat();
    let shown = [&token[..], b"\r\n"].concat();
    witness.run(tag::TREE, || {
        let [master, slave] = terminal();
        // SAFETY: settings of a terminal of the test: an end of line goes out as two characters.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(slave, &raw mut settings), 0);
            settings.c_oflag |= libc::OPOST | libc::ONLCR;
            assert_eq!(
                libc::tcsetattr(slave, libc::TCSANOW, &raw const settings),
                0
            );
        }
        write(slave, &line);
        assert_eq!(read(master, 256), shown);
    });
    assert_eq!(witness.moved(direction::WRITE, &line).len(), 1);
    assert_eq!(witness.moved(direction::READ, &shown).len(), 1);
}

#[test]
fn the_terminal_that_somebody_outside_shows_is_counted_and_left_alone() {
    let Some(mut witness) = witness() else { return };
    let token = token("typed");
    let [done_read, done_write] = pipe();
    let [master, slave] = terminal();
    let (child, gate) = spawn(|| {
        close(master);
        // SAFETY: a process that leads no group yet; a terminal of the test.
        unsafe {
            assert!(libc::setsid() > 0);
            assert_eq!(libc::ioctl(slave, libc::TIOCSCTTY, 0), 0);
        }
        assert_eq!(read(slave, 256), token);
        write(slave, &token);
        read(done_read, 1);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    // The emulator, say.
    write(master, &token);
    assert_eq!(read(master, 256), token);
    write(done_write, b"d");
    witness.reap(child);
    let terminals = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.channel.kind == channel_kind::TTY);
    assert_eq!(terminals.count(), 0);
    assert!(witness.peers().is_empty());
    assert_eq!(
        witness.counter(counter::TERMINAL_BYTES),
        2 * token.len() as u64
    );
}

#[test]
fn a_terminal_from_outside_that_is_not_the_process_s_own_is_watched_at_its_end() {
    let Some(mut witness) = witness() else { return };
    let token = token("handed-in");
    let [master, slave] = terminal();
    witness.run(tag::TREE, || {
        write(slave, &token);
    });
    assert_eq!(read(master, 256), token);
    assert_eq!(witness.moved(direction::WRITE, &token).len(), 1);
    assert!(witness.peers().is_empty());
    close(master);
    close(slave);
}
