//! One real agent, standalone (contracts §6): its directory, its configuration, its process.

use crate::local_api::LocalApi;
use crate::process::{Process, announced};
use crate::table::{ENVIRONMENT, KEY_ID, TableBuilder};
use crate::{Broker, binaries};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// How long an agent may take to be ready. A debug build on a busy machine is slow; a hang is longer than this.
const READY: Duration = Duration::from_secs(30);

/// What an agent is started with.
pub struct Setup {
    device: String,
    class: String,
    table: Option<(String, String)>,
    relay: String,
    origin: String,
    standalone: bool,
    more: String,
    settings: Vec<String>,
    prefix: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            device: "POS-US-0001".into(),
            class: "pos".into(),
            table: None,
            relay: String::new(),
            origin: "scheme = \"http\"".into(),
            standalone: true,
            more: String::new(),
            settings: Vec::new(),
            prefix: Vec::new(),
        }
    }
}

impl Setup {
    /// Another device of the same store.
    #[must_use]
    pub fn device(mut self, device: &str, class: &str) -> Self {
        self.device = device.into();
        self.class = class.into();
        self
    }

    /// The route table it starts with and the key it trusts.
    #[must_use]
    pub fn table(mut self, table: &TableBuilder) -> Self {
        let envelope = serde_json::to_string(&table.sign()).unwrap_or_default();
        self.table = Some((envelope, table.public_key()));
        self
    }

    /// The broker it reports to; without one the relay is off.
    #[must_use]
    pub fn broker(self, broker: &Broker) -> Self {
        self.relay(&broker.url())
    }

    /// The MQTT address it reports to.
    #[must_use]
    pub fn relay(mut self, url: &str) -> Self {
        url.clone_into(&mut self.relay);
        self
    }

    /// Speaks TLS to its origins and believes this authority; without it plain HTTP, which loopback allows.
    #[must_use]
    pub fn tls(mut self, authority: &Path) -> Self {
        self.origin = format!("tls = {{ ca = \"{}\" }}", authority.display());
        self
    }

    /// No identity, no table, no broker: activation brings them.
    #[must_use]
    pub const fn to_be_activated(mut self) -> Self {
        self.standalone = false;
        self
    }

    /// More sections of the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self.more.push('\n');
        self
    }

    /// A `--set section.key=value`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Runs the agent under another program, such as `strace`.
    #[must_use]
    pub fn under(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(ToString::to_string).collect();
        self
    }

    /// Writes the directory and starts the agent; returns when it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(self) -> Result<Agent> {
        let mut agent = self.prepare()?;
        agent.start().await?;
        Ok(agent)
    }

    /// Writes the directory without starting the agent.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn prepare(self) -> Result<Agent> {
        let home = TempDir::with_prefix("samovar-agent-").context("cannot make a directory")?;
        let write = |name: &str, text: &str| {
            std::fs::write(home.path().join(name), text).with_context(|| format!("cannot write {name}"))
        };
        write("agent.toml", &self.toml())?;
        if let Some((envelope, _)) = &self.table {
            write("route-table.json", envelope)?;
        }
        Ok(Agent { home, setup: self, process: None, api: None })
    }

    fn toml(&self) -> String {
        let Self { device, class, relay, origin, more, .. } = self;
        if !self.standalone {
            return format!("[local_api]\nlisten = \"127.0.0.1:0\"\n\n{more}");
        }
        let mut toml = format!(
            "[identity]\ndevice = \"{device}\"\nstore = \"US-0001\"\ncountry = \"US\"\nclass = \"{class}\"\n\n"
        );
        if let Some((_, key)) = &self.table {
            let _ = write!(
                toml,
                "[routing]\ntable = \"route-table.json\"\ntrusted_keys = {{ \"{KEY_ID}\" = \"{key}\" }}\n\
                 environment = \"{ENVIRONMENT}\"\n\n"
            );
        }
        let _ = write!(
            toml,
            "[origin]\n{origin}\n\n[relay]\nurl = \"{relay}\"\n\n[local_api]\nlisten = \"127.0.0.1:0\"\n\n{more}"
        );
        toml
    }
}

/// One agent. The process comes first: it is ended before its directory goes.
pub struct Agent {
    process: Option<Process>,
    api: Option<(LocalApi, u32)>,
    setup: Setup,
    home: TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Under another program the child is that program; the agent would live on.
        if self.process.is_some() && !self.setup.prefix.is_empty() {
            let _ = self.kill_agent(Signal::KILL);
        }
    }
}

impl Agent {
    /// What an agent is started with.
    #[must_use]
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// The directory in which everything of this agent lies.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The agent's data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.home.path().join("agent.toml")
    }

    /// The command that starts this agent.
    ///
    /// # Errors
    /// When the agent's program is missing.
    pub fn command(&self) -> Result<Command> {
        let program = binaries::agent()?;
        let mut command = match self.setup.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(["run", "--data"]).arg(self.data()).arg("--config").arg(self.config_file());
        // The machine's own hosts file is not for stories to write.
        command.args(["--set", "hosts.file=", "--set", "hosts.helper="]);
        for setting in &self.setup.settings {
            command.args(["--set", setting]);
        }
        command.current_dir(self.home.path()).env_remove("NOTIFY_SOCKET");
        Ok(command)
    }

    /// Runs `samovar-agent activate` and gives what became of it.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub async fn activate(&self, server: &str, claim: &str, ca: &Path) -> Result<Output> {
        let mut command = Command::new(binaries::agent()?);
        command.args(["activate", "--server", server, "--claim", claim, "--data"]).arg(self.data());
        command.arg("--ca").arg(ca).current_dir(self.home.path()).kill_on_drop(true);
        let output = tokio::time::timeout(READY, command.output()).await;
        output.context("`activate` does not end")?.context("cannot run `activate`")
    }

    /// Starts the agent on its directory; returns when it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&mut self) -> Result<()> {
        let log = self.home.path().join("agent.log");
        let mut process = Process::start(&mut self.command()?, &log)?;
        let run = announced(&mut process, &self.data().join("run.json"), READY).await?;
        let base =
            run.get("local_api").and_then(|url| url.as_str()).context("run.json has no `local_api`")?;
        let pid = run.get("pid").and_then(serde_json::Value::as_u64).context("run.json has no `pid`")?;
        self.api = Some((LocalApi::new(base)?, u32::try_from(pid)?));
        self.process = Some(process);
        Ok(())
    }

    /// Starts the same program a second time on the same directory and gives what became of it.
    ///
    /// # Errors
    /// When it runs on.
    pub async fn start_second(&self) -> Result<ExitStatus> {
        let mut second = Process::start(&mut self.command()?, &self.home.path().join("second.log"))?;
        second.wait(READY).await
    }

    /// The local API of the running agent.
    ///
    /// # Panics
    /// When the agent was never started; a story that does so is wrong.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a story that talks to an agent it did not start is wrong")]
    pub fn api(&self) -> &LocalApi {
        &self.api.as_ref().expect("the agent was started").0
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the agent is not running")
    }

    fn pid(&self) -> Result<u32> {
        self.api.as_ref().map(|(_, pid)| *pid).context("the agent was not started")
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        crate::process::resident_bytes(self.pid()?)
    }

    /// Resident memory without the share that others have in its pages, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn proportional_bytes(&self) -> Result<u64> {
        crate::process::proportional_bytes(self.pid()?)
    }

    /// The most resident memory it ever had, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn peak_bytes(&self) -> Result<u64> {
        crate::process::peak_bytes(self.pid()?)
    }

    /// The part of its resident memory that is its program and other files, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn program_bytes(&self) -> Result<u64> {
        crate::process::program_bytes(self.pid()?)
    }

    /// Processor time that it has used so far.
    ///
    /// # Errors
    /// When it does not run.
    pub fn processor_time(&self) -> Result<Duration> {
        crate::process::processor_time(self.pid()?)
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn sigkill(&mut self) -> Result<()> {
        self.kill_agent(Signal::KILL)?;
        let mut process = self.process.take().context("the agent is not running")?;
        process.wait(READY).await.map(drop)
    }

    /// Starts it and cuts its power after this long, whether it is ready by then or not.
    ///
    /// # Errors
    /// When it cannot be started, or ends by itself before.
    pub async fn sigkill_while_starting(&mut self, after: Duration) -> Result<()> {
        let log = self.home.path().join("agent.log");
        let mut process = Process::start(&mut self.command()?, &log)?;
        tokio::time::sleep(after).await;
        if let Some(status) = process.ended() {
            anyhow::bail!("the agent ended with {status} while it started:\n{}", process.last_words());
        }
        process.sigkill().await
    }

    /// Leaves its directory where it is when this is dropped, for whoever wants to see what went wrong.
    pub fn keep_home(&mut self) {
        self.home.disable_cleanup(true);
    }

    /// Replaces the route table file; a running agent finds it by itself.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_table(&self, table: &TableBuilder) -> Result<()> {
        let envelope = serde_json::to_string(&table.sign()).context("cannot write the table")?;
        let (new, file) =
            (self.home.path().join("route-table.new"), self.home.path().join("route-table.json"));
        std::fs::write(&new, envelope).context("cannot write the table")?;
        std::fs::rename(new, file).context("cannot put the table into its place")
    }

    /// Asks it to stop and gives how it ended.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn sigterm(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.kill_agent(Signal::TERM)?;
        let mut process = self.process.take().context("the agent is not running")?;
        process.wait(deadline).await
    }

    /// The signal goes to the agent itself, also when it runs under another program.
    fn kill_agent(&self, signal: Signal) -> Result<()> {
        let pid = self.api.as_ref().and_then(|(_, pid)| Pid::from_raw(pid.cast_signed()));
        kill_process(pid.context("the agent was not started")?, signal).context("cannot signal the agent")
    }

    /// What the agent said last; for messages of failed stories.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.process().map(Process::last_words).unwrap_or_default()
    }

    /// Replaces the route table file and starts the agent anew to read it.
    ///
    /// # Errors
    /// When the file cannot be written or the agent does not become ready.
    pub async fn restart_with_table(&mut self, table: &TableBuilder) -> Result<()> {
        self.sigterm(READY).await?;
        self.write_table(table)?;
        self.start().await
    }
}
