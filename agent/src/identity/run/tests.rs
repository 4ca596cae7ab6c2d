use super::*;
use crate::clock::mono;
use crate::heartbeat::Heartbeats;
use crate::identity::testing::{Fleet, Manner, PATIENCE, until};
use crate::identity::{activate, activate::Request};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A running loop.
struct Running {
    identity: Identity,
    board: Board,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(dir: &TempDir) -> Self {
        let (board, stop) = (Board::default(), watch::Sender::new(false));
        let (identity, flow) = start(dir.path(), &Config::default(), board.clone()).unwrap();
        let heartbeat = Heartbeats::default().register("identity", HEARTBEAT_LIMIT);
        let task = tokio::spawn(flow.run(heartbeat, stop.subscribe()));
        Self { identity, board, stop, task }
    }

    fn holds(&self, condition: Condition) -> bool {
        let (shown, _) = self.board.visible(mono());
        shown.iter().any(|active| active.name == condition)
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

async fn activate_in(dir: &TempDir, fleet: &Fleet) {
    let request = Request {
        server: &fleet.url,
        claim: "USW-1",
        ca: Some(&fleet.ca_file),
        data: dir.path(),
        replace: false,
        pending: 0,
    };
    activate(&request).await.unwrap();
}

#[tokio::test]
async fn an_activation_is_noticed_while_the_agent_runs() {
    let (fleet, dir) = (Fleet::start().await, tempfile::tempdir().unwrap());
    let running = Running::start(&dir);
    assert_eq!(running.identity.current(), None);
    assert!(running.holds(Condition::NotActivated));
    let (mut who, mut tls) = (running.identity.watch(), running.identity.tls());
    activate_in(&dir, &fleet).await;
    tokio::time::timeout(PATIENCE, who.changed()).await.unwrap().unwrap();
    assert_eq!(running.identity.current().unwrap().device.as_str(), "POS-US-0001");
    assert!(tls.has_changed().unwrap() && tls.borrow_and_update().is_some());
    assert!(running.identity.validity().is_some());
    assert!(!running.holds(Condition::NotActivated));
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_near_its_end_is_renewed_by_itself_and_connections_hear_of_it() {
    let (fleet, dir) = (Fleet::start().await, tempfile::tempdir().unwrap());
    fleet.answers(Manner::NearEnd(600));
    activate_in(&dir, &fleet).await;
    fleet.answers(Manner::Honest);
    let running = Running::start(&dir);
    let (mut tls, before) = (running.identity.tls(), running.identity.validity().unwrap());
    tls.borrow_and_update();
    tokio::time::timeout(PATIENCE, tls.changed()).await.unwrap().unwrap();
    assert!(running.identity.validity().unwrap().not_after > before.not_after);
    assert!(!running.holds(Condition::CertificateExpiring));
    fleet.heard(|heard| assert_eq!(heard.renewals.len(), 1));
    running.stop().await;
}

#[tokio::test]
async fn a_renewal_that_fails_is_told_and_tried_again() {
    let (fleet, dir) = (Fleet::start().await, tempfile::tempdir().unwrap());
    fleet.answers(Manner::NearEnd(24));
    activate_in(&dir, &fleet).await;
    fleet.answers(Manner::Problem(503, "busy"));
    let running = Running::start(&dir);
    until("the failure is told", || running.holds(Condition::CertificateExpiring)).await;
    fleet.answers(Manner::Honest);
    until("it was renewed after all", || !running.holds(Condition::CertificateExpiring)).await;
    assert!(fleet.heard(|heard| heard.renewals.len()) >= 2);
    running.stop().await;
}

#[tokio::test]
async fn a_damaged_activation_is_told_and_the_agent_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("identity")).unwrap();
    std::fs::write(dir.path().join("identity/activation.json"), b"{half").unwrap();
    let running = Running::start(&dir);
    assert!(running.holds(Condition::FileSetAside) && running.holds(Condition::NotActivated));
    running.stop().await;
}

#[tokio::test]
async fn a_device_that_lost_its_key_keeps_its_name_and_asks_to_be_activated_again() {
    let (fleet, dir) = (Fleet::start().await, tempfile::tempdir().unwrap());
    activate_in(&dir, &fleet).await;
    std::fs::write(dir.path().join("identity/credential-1/device.key"), b"").unwrap();
    let running = Running::start(&dir);
    assert_eq!(running.identity.current().unwrap().device.as_str(), "POS-US-0001");
    assert!(running.holds(Condition::FileSetAside) && running.holds(Condition::NotActivated));
    running.stop().await;
}
