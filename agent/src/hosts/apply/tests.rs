use super::super::file::Line;
use super::*;
use samovar_wire::Timestamp;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(content: &[u8]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(place.path(), content).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    fn file(&self) -> HostsFile {
        HostsFile::new(&self.path(), &self.dir.path().join("state"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn block() -> Block {
    let line = Line {
        id: "0a1b2c3d".into(),
        name: "us.store.example".into(),
        address: "203.0.113.10".parse().unwrap(),
        until: Timestamp::from_millis(1_800_000_000_000),
        forced: false,
    };
    Block { generation: 1, lines: vec![line] }
}

#[test]
fn the_block_comes_and_goes_and_mode_and_attributes_stay() {
    let place = Place::new(b"127.0.0.1 localhost\r\n\0");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o664)).unwrap();
    let labelled = {
        let file = File::open(place.path()).unwrap();
        rustix::fs::fsetxattr(&file, "user.label", b"kept", rustix::fs::XattrFlags::empty()).is_ok()
    };
    let outcome = place.file().apply(&block()).unwrap();
    assert!(outcome.written && outcome.conflicts.is_empty() && outcome.before != outcome.after);
    let metadata = fs::metadata(place.path()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o664);
    if labelled {
        let mut value = vec![0_u8; 64];
        let file = File::open(place.path()).unwrap();
        let length = rustix::fs::fgetxattr(&file, "user.label", value.as_mut_slice()).unwrap();
        assert_eq!(&value[..length], b"kept");
    }
    let again = place.file().apply(&block()).unwrap();
    assert!(!again.written && again.after == outcome.after);
    assert_eq!(fs::metadata(place.path()).unwrap().ino(), metadata.ino(), "nothing was written");
    assert!(place.file().apply(&Block::default()).unwrap().written);
    assert_eq!(fs::read(place.path()).unwrap(), b"127.0.0.1 localhost\r\n\0");
    assert_eq!(place.names(), ["hosts", "state"]);
}

#[test]
fn a_left_over_temporary_file_goes_and_is_never_written_through() {
    let place = Place::new(b"127.0.0.1 localhost\n");
    let victim = place.dir.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, place.dir.path().join(".hosts.samovar-new")).unwrap();
    assert!(place.file().apply(&block()).unwrap().written);
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
    assert_eq!(place.names(), ["hosts", "state", "victim"]);
}

#[test]
fn what_we_do_not_write_is_said_with_why() {
    let why = |file: &HostsFile| match file.apply(&block()) {
        Err(ApplyError::Unsupported { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let place = Place::new(b"");
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    let state = place.dir.path().join("state");
    assert!(why(&HostsFile::new(&link, &state)).contains("symbolic link"));
    assert!(why(&HostsFile::new(&place.dir.path().join("absent"), &state)).contains("does not exist"));
    assert!(why(&HostsFile::new(place.dir.path(), &state)).contains("not a file"));
    fs::write(place.path(), vec![b'x'; 1024 * 1024 + 1]).unwrap();
    assert!(why(&place.file()).contains("too long"));
    assert_eq!(fs::read(place.path()).unwrap().len(), 1024 * 1024 + 1);
}

#[test]
fn two_at_once_wait_for_each_other() {
    let place = Place::new(b"127.0.0.1 localhost");
    std::thread::scope(|scope| {
        for n in 0..8_u64 {
            let place = &place;
            scope.spawn(move || {
                let wanted = if n % 2 == 0 { block() } else { Block::default() };
                place.file().apply(&wanted).unwrap();
            });
        }
    });
    place.file().apply(&Block::default()).unwrap();
    assert_eq!(fs::read(place.path()).unwrap(), b"127.0.0.1 localhost");
}

#[test]
fn a_foreign_line_for_the_name_is_told_before_and_after() {
    let place = Place::new(b"10.0.0.9 us.store.example\n");
    assert_eq!(place.file().preview(&block()).unwrap()[0].line, "10.0.0.9 us.store.example");
    let outcome = place.file().apply(&block()).unwrap();
    assert!(!outcome.written);
    assert_eq!(outcome.conflicts.len(), 1);
}
