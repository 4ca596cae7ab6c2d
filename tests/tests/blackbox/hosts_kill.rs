//! Power cuts while the hosts file is written: SIGKILL at every system call of an apply and of a clear, by `strace`.
//!
//! After each: the file is the old one or the new one, byte for byte, and the next `hosts reconcile` makes it the new
//! one and leaves nothing else behind. Where the file is mounted on its own it is written in place; then what stands
//! between is what the journal finishes. Without `strace` (or mount namespaces) the test says so and proves nothing.

use anyhow::{Context, Result, ensure};
use samovar_tests::binaries;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const OLD: &[u8] = b"127.0.0.1 localhost\r\n10.0.0.1 a\0b\n10.9.9.9 us.store.example\n10.0.0.2 last";

/// A data directory with one override or none, and a hosts file.
struct Place {
    dir: tempfile::TempDir,
    mounted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Applied,
    Cleared,
}

impl Place {
    fn new(mounted: bool) -> Result<Self> {
        let place = Self { dir: tempfile::tempdir()?, mounted };
        std::fs::create_dir_all(place.data())?;
        std::fs::create_dir_all(place.etc())?;
        std::fs::write(place.file(), OLD)?;
        Ok(place)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn etc(&self) -> PathBuf {
        self.dir.path().join("etc")
    }

    /// The file that the program is told to write.
    fn file(&self) -> PathBuf {
        self.etc().join("hosts")
    }

    /// Where its bytes are: with a mount, under another name.
    fn bytes(&self) -> PathBuf {
        if self.mounted { self.dir.path().join("mounted") } else { self.file() }
    }

    fn want(&self, wanted: Wanted) -> Result<()> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let list = match wanted {
            Wanted::Applied => {
                json!([{ "id": "0a1b2c3d", "name": "us.store.example", "address": "203.0.113.10",
                "owner": "lin", "reason": "test", "source": "local", "forced": true, "dated": true,
                "set_at": "2026-01-01T00:00:00.000Z", "until": "2099-01-01T00:00:00.000Z",
                "left_ms": 200_000_000_u64, "boot_id": boot.trim(), "up_ms": 0 }])
            }
            Wanted::Cleared => json!([]),
        };
        let list = json!({ "generation": 7, "overrides": list });
        Ok(std::fs::write(self.data().join("overrides.json"), list.to_string())?)
    }

    /// `hosts reconcile`, under another program if one is named.
    fn reconcile(&self, under: &[String]) -> Result<Output> {
        let mut words: Vec<String> = Vec::new();
        if self.mounted {
            let mount = format!(
                "mount --bind '{}' '{}' && exec \"$@\"",
                self.bytes().display(),
                self.file().display()
            );
            words.extend(["unshare", "-m", "sh", "-c", &mount, "sh"].map(str::to_owned));
        }
        words.extend(under.iter().cloned());
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is text");
        words.push(text(&binaries::agent()?)?);
        words.extend(["hosts", "reconcile", "--data"].map(str::to_owned));
        words.push(text(&self.data())?);
        words.extend(["--set".into(), format!("hosts.file={}", text(&self.file())?)]);
        let (program, rest) = words.split_first().context("a program")?;
        Command::new(program).args(rest).output().context("cannot run it")
    }

    fn finish(&self) -> Result<()> {
        let output = self.reconcile(&[])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn start_with(&self, content: &[u8]) -> Result<()> {
        if self.mounted {
            std::fs::write(self.bytes(), content)?;
        }
        Ok(std::fs::write(self.file(), content)?)
    }

    fn read(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.bytes())?)
    }

    /// Nothing but the file, and of ours nothing but list and lock.
    fn is_clean(&self) -> Result<bool> {
        let names = |path: &Path| -> Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        Ok(names(&self.etc())? == ["hosts"]
            && names(&self.data())? == ["hosts", "overrides.json"]
            && names(&self.data().join("hosts"))? == ["lock"])
    }
}

/// Only the first thread is traced: it does the work, and its calls come in the same order each time.
fn strace(arguments: &[&str]) -> Vec<String> {
    ["strace", "-qq"].iter().chain(arguments).map(ToString::to_string).collect()
}

fn can(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// The calls of one run from the one that reads the list on, each with how many of its kind came up to then: what is
/// before is the start of any program. (`strace` counts each kind for itself.)
fn calls(place: &Place) -> Result<Vec<(String, usize)>> {
    let trace = place.dir.path().join("trace");
    let path = trace.to_str().context("a path that is text")?;
    let output = place.reconcile(&strace(&["-o", path]))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&trace)?;
    let (mut counts, mut calls, mut begun) = (HashMap::<&str, usize>::new(), Vec::new(), false);
    for line in text.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        let count = counts.entry(name).or_default();
        *count += 1;
        begun |= line.contains("overrides.json");
        // An end cannot be cut short.
        if begun && !name.starts_with("exit") {
            calls.push((name.to_owned(), *count));
        }
    }
    Ok(calls)
}

/// Kills at each of the calls; gives how many that were, and at how many of them the file was left as the old one, as
/// the new one, and between.
fn kill_everywhere(place: &Place, wanted: Wanted) -> Result<(usize, [usize; 3])> {
    place.start_with(OLD)?;
    place.want(Wanted::Applied)?;
    place.finish()?;
    let applied = place.read()?;
    ensure!(applied != OLD && String::from_utf8_lossy(&applied).contains("203.0.113.10 us.store.example"));
    let (old, new) = if wanted == Wanted::Applied { (OLD, &applied[..]) } else { (&applied[..], OLD) };
    place.want(wanted)?;
    place.start_with(old)?;
    let points = calls(place)?;
    let (mut seen, mut missed) = ([0; 3], 0);
    for (name, count) in &points {
        let killed = kill_at(place, old, name, *count)?;
        let left = place.read()?;
        if !killed {
            // What comes after the work (threads that are told to end) does not come in the same order each time.
            ensure!(left == new, "{name} number {count} was not hit");
            missed += 1;
            continue;
        }
        let kind = [old, new].iter().position(|whole| left == *whole).unwrap_or(2);
        let text = String::from_utf8_lossy(&left);
        ensure!(kind != 2 || place.mounted, "killed at {name} number {count}: {text}");
        seen[kind] += 1;
        place.finish()?;
        ensure!(place.read()? == new, "not finished after a kill at {name} number {count}");
        ensure!(place.is_clean()?, "something was left after a kill at {name} number {count}");
    }
    ensure!(missed * 10 <= points.len(), "{missed} of {} calls were not hit", points.len());
    Ok((points.len() - missed, seen))
}

/// Gives whether it was killed there, after a few tries.
fn kill_at(place: &Place, old: &[u8], name: &str, count: usize) -> Result<bool> {
    let inject = format!("inject={name}:signal=SIGKILL:when={count}");
    for _ in 0..3 {
        place.start_with(old)?;
        let output = place.reconcile(&strace(&["-o", "/dev/null", "-e", &inject]))?;
        if !output.status.success() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn story(mounted: bool, wanted: Wanted, what: &str) -> Result<()> {
    if !can("strace", &["-o", "/dev/null", "true"]) {
        eprintln!("SKIPPED: strace cannot run here, so nothing was proven about {what}");
        return Ok(());
    }
    if mounted && !can("unshare", &["-m", "true"]) {
        eprintln!("SKIPPED: no mount namespaces here, so nothing was proven about {what}");
        return Ok(());
    }
    let (points, [old, new, between]) = kill_everywhere(&Place::new(mounted)?, wanted)?;
    println!(
        "{what}: killed at {points} calls; the file was the old one {old} times, the new one {new} times, between {between} times"
    );
    ensure!(points > 25 && old > 0 && new > 0, "the kills did not hit the write");
    Ok(())
}

#[test]
fn a_power_cut_at_every_call_of_an_apply_leaves_the_old_file_or_the_new() -> Result<()> {
    story(false, Wanted::Applied, "an apply")
}

#[test]
fn a_power_cut_at_every_call_of_a_clear_leaves_the_old_file_or_the_new() -> Result<()> {
    story(false, Wanted::Cleared, "a clear")
}

#[test]
fn a_power_cut_at_every_call_of_an_apply_in_place_is_finished_from_the_journal() -> Result<()> {
    story(true, Wanted::Applied, "an apply in place")
}

#[test]
fn a_power_cut_at_every_call_of_a_clear_in_place_is_finished_from_the_journal() -> Result<()> {
    story(true, Wanted::Cleared, "a clear in place")
}
