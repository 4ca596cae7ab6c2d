//! The broker's questions ("may this one connect, publish, subscribe?") answered from [`super::access`].
//!
//! Identity comes from the listener: on the TLS listener it is the certificate's common name, which must equal the client
//! ID; on the loopback listener it is the password that was made at start. Nothing is allowed by not being asked: the
//! listeners refuse anonymous clients, and each answer here ends the chain of hooks.

use super::access::{Access, FLEET_CLIENT_PREFIX, Peer, is_device_name};
use super::admission::Admission;
use async_trait::async_trait;
use ring::digest;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType};
use rmqtt::types::{AuthResult, ConnectInfo, Id, LastWill, ListenerId, PublishAclResult, SubscribeAclResult};
use std::sync::Arc;

/// The listener on which certificates are the identity.
pub(super) const TLS: ListenerId = 1;
/// The loopback listener of the fleet's own client.
pub(super) const PLAIN: ListenerId = 2;

/// MQTT 5 on the wire; below it a refused publish cannot be told except by hanging up.
const LEVEL_5: u8 = 5;

/// Answers the broker's three questions.
#[derive(Clone)]
pub(super) struct Gatekeeper {
    access: Arc<Access>,
    username: Arc<str>,
    password_digest: Arc<[u8]>,
    admission: Option<Admission>,
}

impl Gatekeeper {
    pub(super) fn new(
        environment: &str,
        username: &str,
        password: &str,
        admission: Option<Admission>,
    ) -> Self {
        Self {
            access: Arc::new(Access::new(environment)),
            username: username.into(),
            password_digest: digest::digest(&digest::SHA256, password.as_bytes()).as_ref().into(),
            admission,
        }
    }

    fn authenticate(&self, connect: &ConnectInfo) -> AuthResult {
        let id = connect.id();
        let peer = match id.lid {
            TLS => {
                let name = connect.cert().and_then(|cert| cert.common_name.as_deref());
                if name != Some(&*id.client_id) || !is_device_name(&id.client_id) {
                    tracing::warn!(client = %clip(&id.client_id), certificate = name, "MQTT client refused: it is not who its certificate says");
                    return AuthResult::NotAuthorized;
                }
                Peer::Device(&id.client_id)
            }
            PLAIN if self.is_fleet(connect) && id.client_id.starts_with(FLEET_CLIENT_PREFIX) => Peer::Fleet,
            _ => {
                tracing::warn!(client = %clip(&id.client_id), "MQTT client refused: wrong user name or password");
                return AuthResult::BadUsernameOrPassword;
            }
        };
        // The broker publishes a will without asking again, so its topic is judged here.
        if let Some(topic) = connect.last_will().map(|will| will_topic(&will).to_owned())
            && !self.access.may_publish(peer, &topic)
        {
            tracing::warn!(client = %clip(&id.client_id), topic = %clip(&topic), "MQTT client refused: its will is for a topic that is not its own");
            return AuthResult::NotAuthorized;
        }
        AuthResult::Allow(false, None)
    }

    /// [`Self::authenticate`], and for devices: is the certificate still good?
    async fn admit(&self, connect: &ConnectInfo) -> AuthResult {
        let answer = self.authenticate(connect);
        let id = connect.id();
        let (Some(admission), TLS, AuthResult::Allow(..)) = (&self.admission, id.lid, &answer) else {
            return answer;
        };
        let serial = connect.cert().and_then(|cert| cert.serial.as_deref()).unwrap_or_default();
        if admission.admits(&id.client_id, serial).await {
            return answer;
        }
        tracing::warn!(client = %id.client_id, serial, "MQTT client refused: its certificate is not good (any more)");
        AuthResult::NotAuthorized
    }

    fn is_fleet(&self, connect: &ConnectInfo) -> bool {
        let Some(password) = connect.password() else { return false };
        let given = digest::digest(&digest::SHA256, password);
        // Comparing digests: the time this takes says nothing about the password.
        connect.username().is_some_and(|name| **name == *self.username)
            && given.as_ref() == &*self.password_digest
    }
}

#[async_trait]
impl Handler for Gatekeeper {
    async fn hook(&self, param: &Parameter, acc: Option<HookResult>) -> ReturnType {
        match param {
            Parameter::ClientAuthenticate(connect) => {
                (false, Some(HookResult::AuthResult(self.admit(connect).await)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let answer = if peer_of(&session.id)
                    .is_some_and(|peer| self.access.may_publish(peer, &publish.topic))
                {
                    PublishAclResult::allow()
                } else {
                    tracing::debug!(client = %session.id.client_id, topic = %clip(&publish.topic), "MQTT publish refused");
                    let level = session.connect_info().await.map_or(0, |info| info.proto_ver());
                    PublishAclResult::rejected(level < LEVEL_5, None)
                };
                (false, Some(HookResult::PublishAclResult(answer)))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let (filter, shared) = (&*subscribe.topic_filter, subscribe.opts.has_shared_group());
                let answer = if peer_of(&session.id)
                    .is_some_and(|peer| self.access.may_subscribe(peer, filter, shared))
                {
                    SubscribeAclResult::new_success(subscribe.opts.qos(), None)
                } else {
                    tracing::debug!(client = %session.id.client_id, filter = %clip(filter), "MQTT subscribe refused");
                    SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
                };
                (false, Some(HookResult::SubscribeAclResult(answer)))
            }
            _ => (true, acc),
        }
    }
}

/// Who an authenticated session is: the listener it came through decides.
fn peer_of(id: &Id) -> Option<Peer<'_>> {
    match id.lid {
        TLS => Some(Peer::Device(&id.client_id)),
        PLAIN => Some(Peer::Fleet),
        _ => None,
    }
}

fn will_topic<'a>(will: &LastWill<'a>) -> &'a str {
    match will {
        LastWill::V3(will) => &will.topic,
        LastWill::V5(will) => &will.topic,
    }
}

/// Text from a stranger, short enough for a log line.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
