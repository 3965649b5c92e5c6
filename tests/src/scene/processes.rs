//! Processes of a scene: their creation, the programs that they execute, their end.

use countersign_common as abi;
use zerocopy::{FromZeros, IntoBytes};

use super::{DISK, End, Proc, Scene, program, task};

impl Scene {
    /// A process that the capture was told to watch.
    pub fn root(&mut self, exe: u64) -> Proc {
        let process = self.new_process();
        self.exec(process, exe);
        process
    }

    /// A child.
    pub fn fork(&mut self, parent: Proc) -> Proc {
        let child = self.new_process();
        if self.proxies.contains(&parent) {
            self.proxies.push(child);
        }
        let fork = abi::Fork {
            header: self.header(abi::kind::FORK, size_of::<abi::Fork>()),
            parent: task(parent),
            child: task(child),
            child_ns_tgid: child.pid,
            uid: 1000,
            cgroup: 1,
            tag: abi::tag::TREE,
            gid: 1000,
            reserved: 0,
        };
        self.emit(fork.as_bytes(), &[]);
        child
    }

    /// A process executes a program.
    pub fn exec(&mut self, process: Proc, exe: u64) {
        let proxy = exe == program::PROXY;
        self.proxies.retain(|other| *other != process);
        if proxy {
            self.proxies.push(process);
        }
        let name = format!("/bin/{exe}");
        let exec = abi::Exec {
            header: self.header(abi::kind::EXEC, size_of::<abi::Exec>() + name.len()),
            task: task(process),
            exe_inode: exe,
            exe_dev: DISK,
            uid: 1000,
            euid: 1000,
            gid: 1000,
            cgroup: 1,
            tag: abi::tag::TREE | if proxy { abi::tag::PROXY } else { 0 },
            ns_tgid: process.pid,
            filename_len: u16::try_from(name.len()).expect("short"),
            args_len: 0,
            reserved: 0,
            reserved2: 0,
            reserved3: 0,
        };
        self.emit(exec.as_bytes(), name.as_bytes());
    }

    /// A child that executes a program.
    pub fn spawn(&mut self, parent: Proc, exe: u64) -> Proc {
        let child = self.fork(parent);
        self.exec(child, exe);
        child
    }

    /// A process outside of what is watched.
    pub fn outsider(&mut self) -> Proc {
        self.new_process()
    }

    /// A process notes that it is the one that records.
    pub fn records(&mut self, process: Proc) {
        let note = format!(
            r#"{{"event":"recorder","pid":{},"start_boot_ns":{},"tick_ns":10}}"#,
            process.pid, process.start
        );
        self.user(abi::kind::CAPTURE, note.as_bytes());
    }

    /// A process tries something: `what` is one of [`abi::evasion::what`], `number` as there.
    pub fn tries(&mut self, process: Proc, what: u16, number: u64, target: Option<Proc>) {
        self.tries_in_vain(process, what, number, target, 0);
    }

    /// A process tries something, and this is what the call returns.
    pub fn tries_in_vain(
        &mut self,
        process: Proc,
        what: u16,
        number: u64,
        target: Option<Proc>,
        returned: i64,
    ) {
        let nobody = abi::Task {
            tgid: 0,
            tid: 0,
            start_boot_ns: 0,
        };
        self.attempt(abi::evasion::Evasion {
            task: task(process),
            target: target.map_or(nobody, task),
            number,
            returned,
            what,
            ..blank()
        });
    }

    /// A process does something with a file or memory object: `number` is as in [`abi::evasion::what`].
    pub fn tries_file(&mut self, process: Proc, what: u16, number: u64, file: End) {
        let (dev, inode) = self.file_id(file);
        self.attempt(abi::evasion::Evasion {
            task: task(process),
            number,
            what,
            inode,
            dev,
            ..blank()
        });
    }

    /// A process makes or uses a channel of a kind that is not watched: members of [`abi::evasion::Evasion`] as there.
    pub fn uses_foreign(&mut self, process: Proc, number: u64, place: [u64; 2], dev: u32) {
        self.attempt(abi::evasion::Evasion {
            task: task(process),
            number,
            what: abi::evasion::what::FOREIGN_CHANNEL,
            inode: place[0],
            argument: place[1],
            dev,
            ..blank()
        });
    }

    fn attempt(&mut self, record: abi::evasion::Evasion) {
        let size = size_of::<abi::evasion::Evasion>();
        let record = abi::evasion::Evasion {
            header: self.header(abi::kind::EVASION, size),
            ..record
        };
        self.emit(record.as_bytes(), &[]);
    }

    /// A process ends.
    pub fn exit(&mut self, process: Proc) {
        let exit = abi::Exit {
            header: self.header(abi::kind::EXIT, size_of::<abi::Exit>()),
            task: task(process),
            exit_code: 0,
            reserved: 0,
        };
        self.emit(exit.as_bytes(), &[]);
    }
}

fn blank() -> abi::evasion::Evasion {
    abi::evasion::Evasion {
        nth: 1,
        ..abi::evasion::Evasion::new_zeroed()
    }
}
