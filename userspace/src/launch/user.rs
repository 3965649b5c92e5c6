//! Whom the agent runs as.
//!
//! Owns the choice of user and the look-ups in the user database. An agent never runs as root unless
//! the operator writes so: recording needs root, and an agent that is root can switch it off.

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Most groups of one user; the kernel's own limit (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Largest entry of the user database in bytes. Stops a broken directory service from taking all memory.
const PASSWD_MAX_BYTES: usize = 1 << 20;

/// How the user was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--user`.
    Flag,
    /// `SUDO_UID` and `SUDO_GID`.
    Sudo,
    /// This process is not root: the agent stays the same user.
    Unchanged,
}

/// A user with everything that must be set for a process of theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// Login name; absent if the uid is in no database.
    pub name: Option<OsString>,
    /// Home directory.
    pub home: Option<OsString>,
    /// Login shell.
    pub shell: Option<OsString>,
    /// How it was chosen.
    pub origin: Origin,
}

/// Why no user could be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Root without sudo and without `--user`.
    #[error(
        "will not start the agent as root: name a user with --user NAME, or write --user root if that is \
         what you want (an agent that is root can stop the recording)"
    )]
    WouldBeRoot,
    /// The name or number is in no database.
    #[error("there is no user {0}: check --user")]
    NoSuchUser(String),
    /// `SUDO_UID` or `SUDO_GID` is not a number.
    #[error("{0} is not a user or group number: unset it, or use --user")]
    BadSudo(String),
    /// Another user was asked for without the privilege to become them.
    #[error("only root can start the agent as another user: run with sudo, or leave --user out")]
    NotRoot,
    /// The database failed.
    #[error("the user database cannot be read (error {0}): use a numeric --user")]
    Database(i32),
}

/// The inputs of the choice, apart from the user database.
#[derive(Clone, Debug, Default)]
struct Request {
    /// `--user`: a name or a number.
    flag: Option<String>,
    /// `SUDO_UID`.
    sudo_uid: Option<String>,
    /// `SUDO_GID`.
    sudo_gid: Option<String>,
    /// This process's effective uid.
    euid: u32,
}

/// Chooses the agent's user from `--user`, else sudo's variables, else this process's own user if it is not root.
///
/// # Errors
/// [`UserError`]; its text says which flag helps.
pub fn resolve(flag: Option<&str>) -> Result<Identity, UserError> {
    let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    choose(&Request {
        flag: flag.map(str::to_owned),
        sudo_uid: variable("SUDO_UID"),
        sudo_gid: variable("SUDO_GID"),
        euid: rustix::process::geteuid().as_raw(),
    })
}

fn choose(request: &Request) -> Result<Identity, UserError> {
    if let Some(flag) = &request.flag {
        let entry = match flag.parse::<u32>() {
            // All ones means "leave unchanged" to setresuid.
            Ok(u32::MAX) => None,
            Ok(uid) => by_uid(uid)?,
            Err(_) => by_name(flag)?,
        };
        let entry = entry.ok_or_else(|| UserError::NoSuchUser(flag.clone()))?;
        if request.euid != 0 && entry.uid != request.euid {
            return Err(UserError::NotRoot);
        }
        let origin = if request.euid == 0 {
            Origin::Flag
        } else {
            Origin::Unchanged
        };
        return entry.identity(None, origin);
    }
    if request.euid != 0 {
        let entry = by_uid(request.euid)?;
        let gid = rustix::process::getegid().as_raw();
        return match entry {
            Some(entry) => entry.identity(Some(gid), Origin::Unchanged),
            None => Ok(bare(request.euid, gid, Origin::Unchanged)),
        };
    }
    let Some(sudo_uid) = &request.sudo_uid else {
        return Err(UserError::WouldBeRoot);
    };
    let uid = number(sudo_uid, "SUDO_UID")?;
    if uid == 0 {
        return Err(UserError::WouldBeRoot);
    }
    let gid = request
        .sudo_gid
        .as_deref()
        .map(|text| number(text, "SUDO_GID"))
        .transpose()?;
    match (by_uid(uid)?, gid) {
        (Some(entry), gid) => entry.identity(gid, Origin::Sudo),
        (None, Some(gid)) => Ok(bare(uid, gid, Origin::Sudo)),
        (None, None) => Err(UserError::NoSuchUser(sudo_uid.clone())),
    }
}

fn number(text: &str, variable: &str) -> Result<u32, UserError> {
    let parsed = text.parse().ok().filter(|number| *number != u32::MAX);
    parsed.ok_or_else(|| UserError::BadSudo(format!("{variable}={}", text.escape_debug())))
}

fn bare(uid: u32, gid: u32, origin: Origin) -> Identity {
    Identity {
        uid,
        gid,
        groups: vec![gid],
        name: None,
        home: None,
        shell: None,
        origin,
    }
}

/// What the user database says.
struct Entry {
    uid: u32,
    gid: u32,
    name: CString,
    home: OsString,
    shell: OsString,
}

impl Entry {
    fn identity(self, gid: Option<u32>, origin: Origin) -> Result<Identity, UserError> {
        let gid = gid.unwrap_or(self.gid);
        Ok(Identity {
            uid: self.uid,
            gid,
            groups: groups_of(&self.name, gid)?,
            name: Some(OsString::from_vec(self.name.into_bytes())),
            home: Some(self.home),
            shell: Some(self.shell),
            origin,
        })
    }
}

fn by_uid(uid: u32) -> Result<Option<Entry>, UserError> {
    look_up(|entry, buffer, found| {
        // SAFETY: all pointers are valid for the call, and the length is the buffer's own.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr().cast(), buffer.len(), found) }
    })
}

fn by_name(name: &str) -> Result<Option<Entry>, UserError> {
    let Ok(name) = CString::new(name) else {
        return Ok(None);
    };
    look_up(|entry, buffer, found| {
        // SAFETY: as above; the name is NUL-terminated.
        unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                found,
            )
        }
    })
}

fn look_up(
    mut call: impl FnMut(*mut libc::passwd, &mut [u8], *mut *mut libc::passwd) -> libc::c_int,
) -> Result<Option<Entry>, UserError> {
    let mut buffer = vec![0_u8; 1024];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        match call(entry.as_mut_ptr(), &mut buffer, &raw mut found) {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: `found` points to `entry`, which the call has filled in.
                let entry = unsafe { entry.assume_init_ref() };
                return Ok(Some(Entry {
                    uid: entry.pw_uid,
                    gid: entry.pw_gid,
                    name: text(entry.pw_name),
                    home: OsString::from_vec(text(entry.pw_dir).into_bytes()),
                    shell: OsString::from_vec(text(entry.pw_shell).into_bytes()),
                }));
            }
            libc::EINTR => {}
            libc::ERANGE if buffer.len() < PASSWD_MAX_BYTES => buffer.resize(buffer.len() * 4, 0),
            // Some services answer "no such entry" with an error; see getpwnam(3), ERRORS.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(UserError::Database(error)),
        }
    }
}

fn text(pointer: *const libc::c_char) -> CString {
    if pointer.is_null() {
        return CString::default();
    }
    // SAFETY: a member of a filled-in entry: NUL-terminated, inside the caller's buffer, copied at once.
    unsafe { CStr::from_ptr(pointer) }.to_owned()
}

fn groups_of(name: &CStr, gid: u32) -> Result<Vec<u32>, UserError> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the array has room for `count` groups and the name is NUL-terminated.
        let done =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        if done >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(UserError::Database(libc::E2BIG));
        }
        groups.resize((groups.len() * 4).min(GROUPS_MAX), 0);
    }
}

impl Identity {
    /// Environment variables that must name this user instead of the one who ran sudo's root shell.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        if self.origin == Origin::Unchanged {
            return Vec::new();
        }
        let pairs = [
            ("HOME", &self.home),
            ("USER", &self.name),
            ("LOGNAME", &self.name),
            ("SHELL", &self.shell),
        ];
        pairs
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.clone()?)))
            .filter(|(_, value)| !value.as_bytes().is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn root_without_sudo_is_refused() {
        assert_eq!(
            choose(&request(None, None, None)),
            Err(UserError::WouldBeRoot)
        );
        assert_eq!(
            choose(&request(None, Some("0"), Some("0"))),
            Err(UserError::WouldBeRoot)
        );
    }

    #[test]
    fn root_is_possible_when_asked_for() {
        let identity = choose(&request(Some("root"), None, None)).unwrap();
        assert_eq!((identity.uid, identity.origin), (0, Origin::Flag));
        assert!(identity.groups.contains(&0));
        assert_eq!(choose(&request(Some("0"), None, None)).unwrap().uid, 0);
    }

    #[test]
    fn the_user_behind_sudo_is_taken_even_if_no_database_knows_them() {
        let identity = choose(&request(None, Some("3123456789"), Some("77"))).unwrap();
        assert_eq!((identity.uid, identity.gid), (3_123_456_789, 77));
        assert_eq!(identity.groups, [77]);
    }

    #[test]
    fn nonsense_in_sudo_variables_is_named() {
        for bad in ["", "-1", "4294967295", "root", "1 "] {
            let error = choose(&request(None, Some(bad), None)).unwrap_err();
            assert!(error.to_string().contains("SUDO_UID"), "{bad}");
        }
    }

    #[test]
    fn unknown_users_are_named() {
        for bad in ["no-such-user-here", "4294967295", "a\0b", ""] {
            assert!(
                matches!(
                    choose(&request(Some(bad), None, None)),
                    Err(UserError::NoSuchUser(_))
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn others_than_root_cannot_change_user() {
        let request = Request {
            flag: Some("root".into()),
            euid: 4321,
            ..Request::default()
        };
        assert_eq!(choose(&request), Err(UserError::NotRoot));
    }

    #[test]
    fn home_and_name_follow_the_user() {
        let identity = choose(&request(Some("root"), None, None)).unwrap();
        assert!(identity.environment().contains(&("USER", "root".into())));
    }

    fn request(flag: Option<&str>, uid: Option<&str>, gid: Option<&str>) -> Request {
        Request {
            flag: flag.map(Into::into),
            sudo_uid: uid.map(Into::into),
            sudo_gid: gid.map(Into::into),
            euid: 0,
        }
    }
}
