use super::pending::pending_file;
use super::*;
use crate::identity::testing::{Authority, MONTHS, files_below};

/// A key pair with its certificate, as texts.
fn texts(authority: &Authority) -> [String; 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    [key.serialize_pem(), authority.sign_device(&key, "POS-US-0001", MONTHS), authority.pem.clone()]
}

fn with_table<'a>([key, certificate, ca]: &'a [String; 3], table: &'a str) -> Texts<'a> {
    Texts { key, certificate, ca, route_table: Some(table) }
}

fn activation(device: &str) -> Activation {
    serde_json::from_value(serde_json::json!({
        "schema": 1, "credential": 0, "activated_at": "2026-11-20T00:00:00.000Z", "device": device,
        "store": "US-0001", "country": "US", "class": "pos", "environment": "prod", "trusted_keys": {},
        "mqtt_url": "", "fleet_url": "https://fleet.example", "a_later_field": [1, 2]
    }))
    .unwrap()
}

fn device(found: &OnDisk) -> Option<&str> {
    found.activation.as_ref().map(|activation| activation.device.as_str())
}

fn table_in_place(dir: &Path) -> Option<Vec<u8>> {
    store::read(&dir.join(ROUTE_TABLE)).unwrap()
}

/// Performs the first `count` steps of a commit, as far as a crash would let it come.
fn first_steps(dir: &Path, activation: &Activation, texts: &Texts<'_>, count: usize) -> bool {
    let steps = steps(dir, activation, texts).unwrap();
    for step in steps.iter().take(count) {
        perform(step).unwrap();
    }
    count >= steps.len()
}

#[test]
fn a_first_activation_cut_short_at_any_step_is_none_or_whole() {
    let authority = Authority::new("ca");
    let pair = texts(&authority);
    let (mut none, mut whole) = (0, 0);
    for count in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let numbered = Activation { credential: 1, ..activation("POS-US-0001") };
        store::make_dir(&home(dir.path())).unwrap();
        let complete = first_steps(dir.path(), &numbered, &with_table(&pair, "{\"t\":1}"), count);
        let found = read(dir.path()).unwrap();
        assert!(found.set_aside.is_empty(), "after {count} steps: {:?}", found.set_aside);
        if device(&found).is_some() {
            whole += 1;
            assert!(found.credential.is_some() && found.roots.is_some(), "after {count} steps");
            assert_eq!(table_in_place(dir.path()).unwrap(), b"{\"t\":1}", "after {count} steps");
        } else {
            none += 1;
            assert_eq!(table_in_place(dir.path()), None, "after {count} steps");
            // And the next attempt succeeds, and clears what this one left.
            commit(dir.path(), &activation("POS-US-0002"), &with_table(&pair, "{}"), Replaces::Nothing)
                .unwrap();
            assert_eq!(device(&read(dir.path()).unwrap()), Some("POS-US-0002"));
            assert_eq!(files_below(dir.path()).len(), 5, "{:?}", files_below(dir.path()));
        }
        if complete {
            break;
        }
    }
    assert_eq!((none, whole), (6, 2));
}

#[test]
fn a_renewal_cut_short_at_any_step_leaves_the_old_pair_or_the_new_one() {
    let authority = Authority::new("ca");
    let (old, new) = (texts(&authority), texts(&authority));
    for count in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let first =
            commit(dir.path(), &activation("POS-US-0001"), &with_table(&old, "{}"), Replaces::Nothing)
                .unwrap();
        let before = read(dir.path()).unwrap().credential.unwrap().fingerprint();
        let next = Activation { credential: first.credential + 1, ..first.clone() };
        let texts = Texts { route_table: None, ..with_table(&new, "") };
        let complete = first_steps(dir.path(), &next, &texts, count);
        let found = read(dir.path()).unwrap();
        assert!(found.set_aside.is_empty());
        let changed = found.credential.unwrap().fingerprint() != before;
        assert_eq!(changed, complete, "after {count} steps");
        assert_eq!(table_in_place(dir.path()).unwrap(), b"{}");
        if complete {
            break;
        }
        // The next renewal goes through and leaves one credential.
        let renewed = commit(dir.path(), &first, &texts, Replaces::Credential(first.credential)).unwrap();
        assert!(renewed.credential > first.credential);
        assert_ne!(read(dir.path()).unwrap().credential.unwrap().fingerprint(), before);
        assert_eq!(files_below(dir.path()).len(), 5);
    }
}

#[test]
fn half_written_temporary_files_are_never_taken_for_an_activation() {
    let dir = tempfile::tempdir().unwrap();
    let pair = texts(&Authority::new("ca"));
    fs::create_dir_all(home(dir.path())).unwrap();
    fs::write(home(dir.path()).join("activation.json.new"), b"{\"schema\":1,\"cred").unwrap();
    assert_eq!(device(&read(dir.path()).unwrap()), None);
    commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
    fs::write(home(dir.path()).join("activation.json.new"), b"{\"schema\":1,\"cred").unwrap();
    assert_eq!(device(&read(dir.path()).unwrap()), Some("POS-US-0001"));
}

#[test]
fn a_commit_replaces_only_what_it_was_meant_to_replace() {
    let dir = tempfile::tempdir().unwrap();
    let pair = texts(&Authority::new("ca"));
    let give = |name: &str, replaces| {
        commit(dir.path(), &activation(name), &with_table(&pair, "{}"), replaces).map(|kept| kept.credential)
    };
    assert!(matches!(give("POS-US-0001", Replaces::Credential(1)), Err(FilesError::Changed)));
    let first = give("POS-US-0001", Replaces::Nothing).unwrap();
    assert!(matches!(give("POS-US-0002", Replaces::Nothing), Err(FilesError::Changed)));
    let second = give("POS-US-0003", Replaces::Anything).unwrap();
    // A renewal that began under the identity before does not bring it back.
    assert!(matches!(give("POS-US-0001", Replaces::Credential(first)), Err(FilesError::Changed)));
    assert_eq!(device(&read(dir.path()).unwrap()), Some("POS-US-0003"));
    assert_ne!(first, second);
}

#[test]
fn a_commit_does_not_wait_for_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let pair = texts(&Authority::new("ca"));
    store::make_dir(&home(dir.path())).unwrap();
    let held = lock(dir.path()).unwrap();
    let give = || commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing);
    assert!(matches!(give(), Err(FilesError::Locked { .. })));
    assert_eq!(device(&read(dir.path()).unwrap()), None);
    drop(held);
    give().unwrap();
}

#[test]
fn damaged_files_are_set_aside_and_told_and_the_rest_is_kept() {
    let authority = Authority::new("ca");
    let (pair, other) = (texts(&authority), texts(&authority));
    for (file, content) in
        [("device.key", "garbage"), ("device.pem", ""), ("ca.pem", "x"), ("device.key", &other[0])]
    {
        let dir = tempfile::tempdir().unwrap();
        commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
        fs::write(credential_dir(dir.path(), 1).join(file), content).unwrap();
        let found = read(dir.path()).unwrap();
        assert_eq!(device(&found), Some("POS-US-0001"), "{file}");
        assert!(found.credential.is_none(), "{file}");
        assert_eq!(found.set_aside.len(), 1, "{file}");
        let told = found.set_aside[0].to_string();
        assert!(
            told.contains("credential-1.damaged-1") && told.contains(".pem") | told.contains(".key"),
            "{told}"
        );
        assert!(found.set_aside[0].path.join("device.key").exists());
    }
    let dir = tempfile::tempdir().unwrap();
    commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
    fs::write(commit_file(dir.path()), b"{\"device\":").unwrap();
    let found = read(dir.path()).unwrap();
    assert_eq!((device(&found), found.set_aside.len()), (None, 1));
}

#[test]
fn what_a_later_version_wrote_is_carried_along_or_refused_but_never_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let pair = texts(&Authority::new("ca"));
    let kept =
        commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
    commit(dir.path(), &kept, &with_table(&pair, "{}"), Replaces::Credential(kept.credential)).unwrap();
    let text = String::from_utf8(store::read(&commit_file(dir.path())).unwrap().unwrap()).unwrap();
    assert!(text.contains("a_later_field"), "{text}");
    fs::write(commit_file(dir.path()), text.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
    assert!(matches!(read(dir.path()), Err(FilesError::LaterVersion { schema: 2, .. })));
    assert!(commit_file(dir.path()).exists());
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let pair = texts(&Authority::new("ca"));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    key_for_claim(dir.path(), "USW-1", rcgen::KeyPair::generate).unwrap();
    assert_eq!(mode(pending_file(dir.path(), "USW-1")), 0o600);
    commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
    assert_eq!(mode(credential_dir(dir.path(), 1).join("device.key")), 0o600);
    assert_eq!(mode(home(dir.path())), 0o700);
    assert!(!pending_file(dir.path(), "USW-1").exists(), "a commit leaves no keys of claims");
}

#[test]
fn each_claim_has_a_key_of_its_own_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |claim| {
        let (key, new) = key_for_claim(dir.path(), claim, rcgen::KeyPair::generate).unwrap();
        (key.serialize_pem(), new)
    };
    let (first, new) = ask("USW-1");
    assert!(new);
    assert_ne!(ask("USW-2").0, first);
    assert_eq!(ask("USW-1"), (first.clone(), false));
    forget_claim(dir.path(), "USW-1").unwrap();
    assert_ne!(ask("USW-1").0, first);
}

#[cfg(unix)]
#[test]
fn what_root_writes_belongs_to_the_owner_of_the_data_directory() {
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let somebody = (65_534, 65_534);
    if chown(dir.path(), Some(somebody.0), Some(somebody.1)).is_err() {
        // Only root can give anything away; whoever else runs this writes as the agent would.
        return;
    }
    let pair = texts(&Authority::new("ca"));
    let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    key_for_claim(dir.path(), "USW-1", rcgen::KeyPair::generate).unwrap();
    assert_eq!(owner(&pending_file(dir.path(), "USW-1")), somebody);
    commit(dir.path(), &activation("POS-US-0001"), &with_table(&pair, "{}"), Replaces::Nothing).unwrap();
    for path in files_below(dir.path()).iter().map(|name| dir.path().join(name)) {
        assert_eq!(owner(&path), somebody, "{}", path.display());
    }
    for path in [home(dir.path()), credential_dir(dir.path(), 1), home(dir.path()).join("lock")] {
        assert_eq!(owner(&path), somebody, "{}", path.display());
    }
}
