//! The shim between SQLite and the system: a default VFS that lets the files of a [`Disk`] be watched and failed, and
//! passes everything else through.
//!
//! The files are real ones, kept by SQLite's own VFS below; the shim tells the disk of each operation and asks it
//! first whether the operation is to fail. All of the harness's unsafe code is here.
//! Deliberately absent: shared memory and memory maps. A ledger that needed them could not open on a full disk.
#![expect(unsafe_code, reason = "a VFS is a table of C functions")]

use crate::disk::{self, Disk, Inode, Kind, Trouble};
use rusqlite::ffi;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, OnceLock};

/// An open file: SQLite's view, what we know of it, and behind it in the same memory the file of the VFS below.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    disk: *const Disk,
    inode: Inode,
    below: *mut ffi::sqlite3_file,
}

/// The VFS below.
struct Below(*mut ffi::sqlite3_vfs);
// SAFETY: SQLite keeps its VFS objects for the life of the process and calls them from any thread itself.
unsafe impl Send for Below {}
// SAFETY: as above; nothing in it is changed after it was registered.
unsafe impl Sync for Below {}

static BELOW: OnceLock<Below> = OnceLock::new();

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Makes the shim the default VFS of this process, once.
pub(crate) fn install() {
    BELOW.get_or_init(|| {
        // SAFETY: asks for the default VFS; the object lives as long as the process.
        let below = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!below.is_null(), "SQLite has no VFS");
        // SAFETY: `below` is a VFS, and a VFS is plain data that may be copied.
        let mut ours = unsafe { ptr::read(below) };
        let room = c_int::try_from(size_of::<File>()).expect("a small struct");
        ours.szOsFile += room;
        ours.pNext = ptr::null_mut();
        ours.zName = c"samovar-power".as_ptr();
        ours.xOpen = Some(open);
        ours.xDelete = Some(delete);
        // SAFETY: the object is leaked, so it lives as long as SQLite may use it.
        let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(ours)), 1) };
        assert_eq!(registered, ffi::SQLITE_OK, "the shim cannot be registered");
        Below(below)
    });
}

/// From now on every connection of this process stays at `synchronous=NORMAL`, whatever it asks for.
pub(crate) fn never_full() {
    // SAFETY: the callback has the signature that SQLite calls it with.
    let code = unsafe { ffi::sqlite3_auto_extension(Some(stay_normal)) };
    assert_eq!(code, ffi::SQLITE_OK, "the extension cannot be registered");
}

unsafe extern "C" fn stay_normal(
    connection: *mut ffi::sqlite3,
    _message: *mut *mut c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // Exclusive first, as the product does: the setting reads the file, and the shim has no shared memory.
    let sql = c"PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=NORMAL";
    // SAFETY: SQLite hands in an open connection; the text ends in NUL.
    unsafe {
        let set = ffi::sqlite3_exec(connection, sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut());
        if set == ffi::SQLITE_OK {
            ffi::sqlite3_set_authorizer(connection, Some(ignore_synchronous), ptr::null_mut())
        } else {
            set
        }
    }
}

unsafe extern "C" fn ignore_synchronous(
    _data: *mut c_void,
    action: c_int,
    what: *const c_char,
    _: *const c_char,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    // SAFETY: the first argument of a PRAGMA is its name, a text that ends in NUL.
    let synchronous = action == ffi::SQLITE_PRAGMA
        && !what.is_null()
        && unsafe { CStr::from_ptr(what) }.to_bytes().eq_ignore_ascii_case(b"synchronous");
    if synchronous { ffi::SQLITE_IGNORE } else { ffi::SQLITE_OK }
}

fn below() -> *mut ffi::sqlite3_vfs {
    BELOW.get().map_or(ptr::null_mut(), |below| below.0)
}

/// What SQLite is told of a trouble.
const fn code(trouble: Trouble, kind: Kind) -> c_int {
    match (trouble, kind) {
        (Trouble::NoSpace, Kind::Write | Kind::Truncate) => ffi::SQLITE_FULL,
        (_, Kind::Write) => ffi::SQLITE_IOERR_WRITE,
        (_, Kind::Truncate) => ffi::SQLITE_IOERR_TRUNCATE,
        (_, Kind::Read) => ffi::SQLITE_IOERR_READ,
        (_, Kind::Sync) => ffi::SQLITE_IOERR_FSYNC,
        (_, Kind::Open) => ffi::SQLITE_CANTOPEN,
    }
}

/// # Safety
/// `file` is one that `open` filled in and `close` has not seen.
unsafe fn parts<'a>(file: *mut ffi::sqlite3_file) -> (&'a Disk, Inode, *mut ffi::sqlite3_file) {
    // SAFETY: `open` wrote a `File` here; its disk is kept alive by the reference that `close` takes back.
    unsafe {
        let file = &*file.cast::<File>();
        (&*file.disk, file.inode, file.below)
    }
}

/// Calls the same method of the file below.
macro_rules! below {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let file = $file;
        // SAFETY: a file that the VFS below opened, with the arguments that SQLite gave.
        unsafe {
            match (*(*file).pMethods).$method {
                Some(method) => method(file $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a path that ends in NUL, or none for a temporary file.
    let path = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
    let disk = path.as_deref().and_then(|path| disk::of(Path::new(path)));
    // SAFETY: the VFS below gets the file memory it asked for: `szOsFile` is ours and its together.
    unsafe {
        let Some(real_open) = (*below()).xOpen else { return ffi::SQLITE_CANTOPEN };
        let (Some(path), Some(disk)) = (path, disk) else {
            return real_open(below(), name, file, flags, out_flags);
        };
        (*file).pMethods = ptr::null();
        if let Some(trouble) = disk.trouble(Kind::Open) {
            return code(trouble, Kind::Open);
        }
        let existed = Path::new(&path).exists();
        let real = file.cast::<u8>().add(size_of::<File>()).cast::<ffi::sqlite3_file>();
        let opened = real_open(below(), name, real, flags, out_flags);
        if opened != ffi::SQLITE_OK {
            return opened;
        }
        let inode = disk.opened(Path::new(&path), existed);
        let base = ffi::sqlite3_file { pMethods: &raw const METHODS };
        file.cast::<File>().write(File { base, disk: Arc::into_raw(disk), inode, below: real });
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: SQLite gives a path that ends in NUL; the VFS below is asked for the same.
    unsafe {
        let path = CStr::from_ptr(name).to_string_lossy().into_owned();
        let Some(real) = (*below()).xDelete else { return ffi::SQLITE_IOERR_DELETE };
        let code = real(below(), name, sync_dir);
        if let (ffi::SQLITE_OK, Some(disk)) = (code, disk::of(Path::new(&path))) {
            disk.deleted(Path::new(&path), sync_dir != 0);
        }
        code
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: called once after `open`.
    let (_, _, real) = unsafe { parts(file) };
    let code = below!(real, xClose);
    // SAFETY: the last call for this file: the reference that `open` took is given back.
    unsafe { drop(Arc::from_raw((*file.cast::<File>()).disk)) };
    code
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, n: c_int, at: i64) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (disk, _, real) = unsafe { parts(file) };
    match disk.trouble(Kind::Read) {
        Some(trouble) => code(trouble, Kind::Read),
        None => below!(real, xRead, to, n, at),
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, n: c_int, at: i64) -> c_int {
    // SAFETY: called between `open` and `close`; `from` has `n` bytes.
    let (disk, inode, real, bytes) = unsafe {
        let (disk, inode, real) = parts(file);
        (disk, inode, real, std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(n).unwrap_or(0)))
    };
    let trouble = disk.trouble(Kind::Write);
    // A disk that fails in the middle has taken the first half.
    let part = if trouble.is_some() { bytes.len() / 2 / 512 * 512 } else { bytes.len() };
    if part > 0 {
        let code = below!(real, xWrite, from, c_int::try_from(part).unwrap_or(n), at);
        if code != ffi::SQLITE_OK {
            return code;
        }
        disk.wrote(inode, at, &bytes[..part]);
    }
    trouble.map_or(ffi::SQLITE_OK, |trouble| code(trouble, Kind::Write))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (disk, inode, real) = unsafe { parts(file) };
    if let Some(trouble) = disk.trouble(Kind::Truncate) {
        return code(trouble, Kind::Truncate);
    }
    let code = below!(real, xTruncate, size);
    if code == ffi::SQLITE_OK {
        disk.truncated(inode, size);
    }
    code
}

/// Not passed on: what is durable is decided by the disk's log alone.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (disk, inode, _) = unsafe { parts(file) };
    let trouble = disk.trouble(Kind::Sync);
    disk.synced(inode, trouble.is_none());
    trouble.map_or(ffi::SQLITE_OK, |trouble| code(trouble, Kind::Sync))
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xCheckReservedLock, held)
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xFileControl, what, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (_, _, real) = unsafe { parts(file) };
    below!(real, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: called between `open` and `close`.
    let (disk, _, real) = unsafe { parts(file) };
    let own = below!(real, xDeviceCharacteristics);
    if disk.claims_powersafe() { own | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE } else { own }
}
