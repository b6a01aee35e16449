//! What a capturing process gives up once its ring is open.

use std::io;

/// Make the calling process unable to gain privileges, and make it die with its parent.
///
/// Call it after the change of user: that change clears the parent-death signal. The caller must compare its parent
/// before and after: a parent that died in between sends no signal.
pub fn confine() -> io::Result<()> {
    let settings = [
        (libc::PR_SET_NO_NEW_PRIVS, 1),
        (libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong),
        (libc::PR_SET_DUMPABLE, 0), // captured traffic must not end up in a core file
    ];
    for (option, value) in settings {
        let zero: libc::c_ulong = 0;
        // SAFETY: these options take integers only; no memory of ours is read or written.
        if unsafe { libc::prctl(option, value as libc::c_ulong, zero, zero, zero) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
