//! Makes processes in every way there is; each writes one line and is gone.
//!
//! `--torture COUNT` runs several makers at once, so that creations, executions and exits of different kinds meet. A line
//! names its number and its kind; what comes out of the standard output is what was written.

use std::{
    ffi::{CString, c_void},
    io,
    os::fd::RawFd,
    thread,
};

use crate::{
    compat,
    system::{done, memory_file, moved, raw},
};

/// Processes that make processes, at the same time.
const MAKERS: usize = 4;
/// Stack of a process that shares our memory, in bytes.
const STACK_BYTES: usize = 64 * 1024;
/// Programs that a chain executes one after the other.
const CHAIN_LENGTH: usize = 4;

/// How a process comes to be.
type Creation = (&'static str, fn(&Line) -> io::Result<()>);

/// What it writes, and what is needed to have another program write it.
struct Line {
    text: String,
    /// Path of this program.
    exe: CString,
}

const CREATIONS: [Creation; 18] = [
    ("fork", |line| child(|| line.write())),
    ("vfork", |line| {
        cloned(line, libc::CLONE_VM | libc::CLONE_VFORK)
    }),
    ("shared memory", |line| {
        cloned(line, libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS)
    }),
    ("sibling", |line| cloned(line, libc::CLONE_PARENT)),
    ("thread", |line| {
        thread::scope(|scope| scope.spawn(|| line.write()).join().map_err(panicked)?)
    }),
    ("fork by a thread", |line| {
        thread::scope(|scope| {
            let made = scope.spawn(|| child(|| line.write()));
            made.join().map_err(panicked)?
        })
    }),
    ("thread without leader", |line| {
        child(|| leaderless(|| line.write()))
    }),
    ("fork without leader", |line| {
        child(|| leaderless(|| child(|| line.write())))
    }),
    ("exec by a thread", |line| {
        child(|| thread::scope(|scope| scope.spawn(|| line.execute(0)).join().map_err(panicked)?))
    }),
    ("exec by a thread without leader", |line| {
        child(|| leaderless(|| line.execute(0)))
    }),
    ("exec by one of two threads", |line| {
        child(|| {
            // Whoever comes second is ended by the first, or cannot even be made any more.
            thread::scope(|scope| {
                let racer = || thread::Builder::new().spawn_scoped(scope, || line.execute(0));
                for racer in [racer(), racer()].into_iter().flatten() {
                    racer.join().map_err(panicked)??;
                }
                Ok(())
            })
        })
    }),
    ("fork by int 0x80", |line| match compat::fork()? {
        0 => leave(line.write()),
        pid => succeeded(i32::try_from(pid).unwrap_or(-1)),
    }),
    ("orphan", |line| {
        child(|| {
            unsafe { libc::setsid() };
            // The one in the middle does not wait: the last one gets another parent.
            forked(|| line.write()).map(drop)
        })
    }),
    ("posix_spawn", spawned),
    ("clone3, pid namespace", |line| {
        cloned3(line, libc::CLONE_NEWPID)
    }),
    ("clone3, user, pid and network namespaces", |line| {
        cloned3(
            line,
            libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET,
        )
    }),
    ("chain of execs", |line| {
        child(|| line.execute(CHAIN_LENGTH))
    }),
    ("exec of a 32-bit program that executes", |line| {
        child(|| line.execute32())
    }),
];

fn panicked(_payload: Box<dyn std::any::Any + Send>) -> io::Error {
    io::Error::other("a thread panicked")
}

impl Line {
    fn write(&self) -> io::Result<()> {
        let (at, len) = (self.text.as_ptr(), self.text.len());
        moved(unsafe { libc::write(1, at.cast(), len) }).map(drop)
    }

    /// Arguments of a program that writes the line once it has executed itself `more` times.
    fn arguments(&self, more: usize) -> [CString; 4] {
        let more = more.to_string();
        let name = self.exe.to_str().unwrap_or_default();
        [name, "--write", &more, &self.text].map(|text| CString::new(text).unwrap_or_default())
    }

    fn execute(&self, more: usize) -> io::Result<()> {
        let arguments = self.arguments(more);
        let pointers = pointers(&arguments);
        unsafe { libc::execv(pointers[0], pointers.as_ptr()) };
        Err(io::Error::last_os_error())
    }

    /// A 32-bit program takes over, which executes this one again through its own ABI.
    fn execute32(&self) -> io::Result<()> {
        let image = compat::executor(&self.arguments(0));
        let file: RawFd = memory_file()?;
        moved(unsafe { libc::write(file, image.as_ptr().cast(), image.len()) })?;
        let none = [std::ptr::null::<i8>()];
        raw(unsafe {
            let (path, nothing) = (c"".as_ptr(), none.as_ptr());
            let flags = libc::AT_EMPTY_PATH;
            libc::syscall(libc::SYS_execveat, file, path, nothing, nothing, flags)
        })
        .map(drop)
    }
}

fn pointers(arguments: &[CString]) -> Vec<*const i8> {
    let texts = arguments.iter().map(|text| text.as_ptr());
    texts.chain([std::ptr::null()]).collect()
}

/// Runs the makers; an error names the creation that did not work.
pub(crate) fn torture(count: usize) -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let exe = CString::new(exe.into_os_string().into_encoded_bytes()).map_err(io::Error::other)?;
    let mut makers = Vec::new();
    for maker in 0..MAKERS {
        makers.push(forked(|| {
            // Orphans become this maker's children.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
            for number in (maker..count).step_by(MAKERS) {
                let (name, create) = CREATIONS[number / MAKERS % CREATIONS.len()];
                let text = format!("{number:08} {name}\n");
                let line = Line {
                    text,
                    exe: exe.clone(),
                };
                create(&line).map_err(|error| io::Error::other(format!("{name}: {error}")))?;
                while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
            }
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
            Ok(())
        })?);
    }
    for maker in makers {
        succeeded(maker)?;
    }
    // Siblings of the makers, which are ours.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
    Ok(())
}

/// `--write MORE TEXT`: what [`Line::execute`] starts.
pub(crate) fn written(arguments: &[String]) -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let line = Line {
        text: arguments.get(1).cloned().unwrap_or_default(),
        exe: CString::new(exe.into_os_string().into_encoded_bytes()).map_err(io::Error::other)?,
    };
    match arguments
        .first()
        .and_then(|more| more.parse::<usize>().ok())
    {
        Some(0) => line.write(),
        Some(more) => line.execute(more - 1),
        None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// A child by `fork`, not waited for.
fn forked(body: impl FnOnce() -> io::Result<()>) -> io::Result<i32> {
    let pid = done(unsafe { libc::fork() })?;
    if pid == 0 {
        leave(body());
    }
    Ok(pid)
}

fn leave(result: io::Result<()>) -> ! {
    let failed = result.is_err();
    if let Err(error) = result {
        crate::say(&mut io::stderr(), &error.to_string());
    }
    unsafe { libc::_exit(i32::from(failed)) }
}

/// A child by `fork`, waited for.
fn child(body: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    succeeded(forked(body)?)
}

fn succeeded(pid: i32) -> io::Result<()> {
    let mut status = 0;
    done(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!("wait status {status}")))
    }
}

/// Ends the calling thread, the leader, and has another go on.
fn leaderless(body: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let leader = unsafe { libc::getpid() };
    thread::scope(|scope| {
        scope.spawn(move || {
            // The leader is a zombie once its state says so.
            let stat = format!("/proc/self/task/{leader}/stat");
            while !std::fs::read_to_string(&stat).is_ok_and(|text| text.contains(") Z ")) {
                thread::yield_now();
            }
            leave(body());
        });
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        unreachable!("the thread has ended")
    })
}

/// A process by `clone` on a stack of its own.
fn cloned(line: &Line, flags: i32) -> io::Result<()> {
    extern "C" fn body(line: *mut c_void) -> i32 {
        // With shared memory, everything else would be the parent's too.
        let line: &Line = unsafe { &*line.cast() };
        let (at, len) = (line.text.as_ptr(), line.text.len());
        let wrote = unsafe { libc::write(1, at.cast(), len) };
        i32::from(wrote < 0)
    }
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let top = unsafe { stack.as_mut_ptr().add(stack.len()) };
    let argument = std::ptr::from_ref(line).cast_mut().cast();
    let flags = flags | libc::SIGCHLD;
    let pid = done(unsafe { libc::clone(body, top.cast(), flags, argument) })?;
    if flags & libc::CLONE_PARENT != 0 {
        // Not ours to wait for; and it has its own copy of the stack.
        return Ok(());
    }
    succeeded(pid)
}

/// `struct clone_args` (`include/uapi/linux/sched.h`), first version.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// A process by `clone3`, in namespaces of its own.
fn cloned3(line: &Line, flags: i32) -> io::Result<()> {
    let arguments = CloneArguments {
        flags: u64::from(flags.cast_unsigned()),
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    let size = size_of::<CloneArguments>();
    let pid = raw(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    if pid == 0 {
        leave(line.write());
    }
    succeeded(i32::try_from(pid).unwrap_or(-1))
}

fn spawned(line: &Line) -> io::Result<()> {
    let arguments = line.arguments(0);
    let pointers: Vec<*mut i8> = pointers(&arguments)
        .into_iter()
        .map(<*const i8>::cast_mut)
        .collect();
    let none = [std::ptr::null_mut()];
    let mut pid = 0;
    let error = unsafe {
        let (actions, attributes) = (std::ptr::null(), std::ptr::null());
        let (path, environment) = (pointers[0], none.as_ptr());
        libc::posix_spawn(
            &raw mut pid,
            path,
            actions,
            attributes,
            pointers.as_ptr(),
            environment,
        )
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    succeeded(pid)
}
