//! What a process does before it becomes another one.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::SigSet, stat::Mode},
    unistd::{ForkResult, Pid, setsid},
};

/// Closes every file but the standard three: whatever was inherited.
pub fn close_inherited() -> Result<(), Errno> {
    #[allow(unsafe_code, reason = "a system call without pointers")]
    // SAFETY: takes numbers only. The caller has opened nothing yet, so no owned descriptor is closed behind its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    Errno::result(result).map(drop)
}

/// Splits the process. The caller must have one thread only.
pub fn fork() -> Result<ForkResult, Errno> {
    #[allow(unsafe_code, reason = "a process of one thread may do anything after a fork")]
    // SAFETY: with one thread no lock can be held by a thread that the child lacks.
    unsafe {
        nix::unistd::fork()
    }
}

/// A file that is readable once the process has ended; for the first one of a PID namespace, once all of that have.
pub fn end_of(pid: Pid) -> Result<OwnedFd, Errno> {
    #[allow(unsafe_code, reason = "a system call that gives a new descriptor")]
    // SAFETY: takes numbers only, and nobody else owns what it has just made.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0_u32))?;
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

/// Kills the process of [`end_of`]: that one, whoever has its number by now. ESRCH when it has ended.
pub fn kill_by(end: impl AsFd) -> Result<(), Errno> {
    let (fd, signal, info) = (end.as_fd().as_raw_fd(), libc::SIGKILL, std::ptr::null::<libc::siginfo_t>());
    #[allow(unsafe_code, reason = "a system call on an open descriptor")]
    // SAFETY: the descriptor is open, and without an info the kernel reads no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0_u32) };
    Errno::result(result).map(drop)
}

/// Has the command join cgroups before it runs, and before it is another user's: these are their open `cgroup.procs`.
pub fn join(command: &mut Command, cgroups: Vec<File>) {
    let prepare = move || cgroups.iter().try_for_each(|mut procs| procs.write_all(b"0"));
    #[allow(unsafe_code, reason = "system calls only between fork and exec")]
    // SAFETY: the closure makes system calls that are safe after a fork and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Gives the command a session of its own (with its standard input as controlling terminal if `terminal`), no way to new
/// privileges, and no blocked signals.
pub fn contain(command: &mut Command, terminal: bool) {
    let prepare = move || -> io::Result<()> {
        setsid()?;
        if terminal {
            #[allow(unsafe_code, reason = "a system call without pointers")]
            // SAFETY: takes numbers only; standard input is open.
            Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY as _, 0) })?;
        }
        prctl::set_no_new_privs()?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    #[allow(unsafe_code, reason = "system calls only between fork and exec")]
    // SAFETY: the closure makes system calls that are safe after a fork and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Has the command see a file in another's place, and the directories in `covered` empty; nobody else does. Where the kernel
/// refuses, the command sees what there is.
pub fn lay_over(command: &mut Command, from: CString, to: CString, covered: Vec<CString>) {
    let none: Option<&CStr> = None;
    let prepare = move || -> io::Result<()> {
        if unshare(CloneFlags::CLONE_NEWNS).is_err() {
            return Ok(());
        }
        // What the machine mounts and unmounts later is seen, and nothing is given back.
        let slave = mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none);
        let _ = slave.and_then(|()| {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            for place in &covered {
                mount(Some(c"tmpfs"), place.as_c_str(), Some(c"tmpfs"), flags, Some(c"mode=755,size=64k"))?;
            }
            // The file may have been in one of them.
            drop(open(
                to.as_c_str(),
                OFlag::O_CREAT | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::from_bits_truncate(0o644),
            ));
            mount(Some(from.as_c_str()), to.as_c_str(), none, MsFlags::MS_BIND, none)
        });
        Ok(())
    };
    #[allow(unsafe_code, reason = "system calls only between fork and exec")]
    // SAFETY: the closure makes system calls that are safe after a fork and allocates nothing: all texts are C strings already.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Has the command run as root of a user namespace, where that root is the calling user: what an ordinary user needs to make
/// other namespaces.
pub fn in_user_namespace(command: &mut Command) {
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {} 1\n", nix::unistd::geteuid())),
        ("/proc/self/gid_map", format!("0 {} 1\n", nix::unistd::getegid())),
    ];
    let prepare = move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        maps.iter().try_for_each(|(file, text)| std::fs::write(file, text))
    };
    #[allow(unsafe_code, reason = "system calls only between fork and exec")]
    // SAFETY: the closure makes system calls that are safe after a fork; the paths are short enough to need no allocation.
    unsafe {
        command.pre_exec(prepare);
    }
}
