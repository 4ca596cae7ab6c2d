//! The broker's insides: its listeners, its storage and the limits of both.
//!
//! Limits are for 50,000 devices on one process: what is queued for a device that is away is small (its acknowledgements
//! and commands), what is queued for the fleet's own client is a minute of everything.

use super::hooks::{Gatekeeper, PLAIN, TLS};
use super::{BrokerConfig, BrokerError, TlsListen};
use rmqtt::context::ServerContext;
use rmqtt::hook::Type;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::{MqttServer, MqttServerBuilder};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

/// Largest message of the contract plus room for topic and properties.
const MAX_PACKET: u32 = 256 * 1024 + 8 * 1024;
/// How long a session, and what is queued in it, outlives its connection.
const SESSION_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Messages waiting for one device that is away; the oldest goes first when full.
const DEVICE_QUEUE: usize = 500;
/// Messages waiting for the fleet's own client.
const FLEET_QUEUE: usize = 50_000;
/// sled's page cache, for each of the two stores.
const STORE_CACHE: &str = "64M";

/// Where the broker came to listen.
pub(super) struct Opened {
    pub(super) server: MqttServer,
    pub(super) tls: Option<SocketAddr>,
    pub(super) plain: SocketAddr,
    pub(super) context: ServerContext,
}

/// Opens the stores, installs the access rules and binds the listeners. Accepts nobody yet.
pub(super) async fn open(config: &BrokerConfig, gatekeeper: &Gatekeeper) -> Result<Opened, BrokerError> {
    let context = open_context(&config.data_dir).await?;
    install(&context, gatekeeper).await;
    let mut builder = MqttServer::new(context.clone());
    let (plain, listener) = bind(plain_builder(config.plain_listen))?;
    let listener = listener.tcp().map_err(|e| BrokerError::Bind { addr: plain, source: e.into() })?;
    builder = builder.listener_by_id(listener, PLAIN);
    let mut tls = None;
    if let Some(listen) = &config.tls {
        let (addr, with_tls) = add_tls(builder, listen)?;
        builder = with_tls;
        tls = Some(addr);
    }
    Ok(Opened { server: builder.build(), tls, plain, context })
}

fn add_tls(
    builder: MqttServerBuilder,
    listen: &TlsListen,
) -> Result<(SocketAddr, MqttServerBuilder), BrokerError> {
    let (addr, listener) = bind(tls_builder(listen))?;
    let listener =
        listener.tls().map_err(|e| BrokerError::Tls { cert: listen.cert.clone(), source: e.into() })?;
    Ok((addr, builder.listener_by_id(listener, TLS)))
}

fn bind(builder: Builder) -> Result<(SocketAddr, Listener), BrokerError> {
    let addr = builder.laddr;
    let bound = builder.bind().and_then(|listener| Ok((listener.local_addr()?, listener)));
    bound.map_err(|e| BrokerError::Bind { addr, source: e.into() })
}

async fn open_context(data_dir: &Path) -> Result<ServerContext, BrokerError> {
    let (retained, sessions) = (data_dir.join("retained"), data_dir.join("sessions"));
    for dir in [&retained, &sessions] {
        std::fs::create_dir_all(dir).map_err(|source| BrokerError::DataDir { path: dir.clone(), source })?;
    }
    let context = ServerContext::new()
        // Its notion of "busy" is the load of the whole machine, whatever the cause: a busy neighbour must not keep tills out.
        .busy_check_enable(false)
        .plugins_config_map_add("rmqtt-retainer", retainer_config(&retained))
        .plugins_config_map_add("rmqtt-session-storage", session_config(&sessions))
        .plugins_config_map_add("rmqtt-shared-subscription", "strategy = \"round_robin\"")
        .build()
        .await;
    let failed = |part| move |e: rmqtt::Error| BrokerError::Store { part, source: e.into() };
    rmqtt_plugins::retainer::register(&context, true, true).await.map_err(failed("retained messages"))?;
    rmqtt_plugins::session_storage::register(&context, true, true).await.map_err(failed("sessions"))?;
    rmqtt_plugins::shared_subscription::register(&context, true, true)
        .await
        .map_err(failed("shared subscriptions"))?;
    Ok(context)
}

async fn install(context: &ServerContext, gatekeeper: &Gatekeeper) {
    let register = context.extends.hook_mgr().register();
    for hook in [Type::ClientAuthenticate, Type::MessagePublishCheckAcl, Type::ClientSubscribeCheckAcl] {
        register.add_priority(hook, u32::MAX, Box::new(gatekeeper.clone())).await;
    }
    register.start().await;
}

/// What both listeners have in common.
fn base(name: &str, addr: SocketAddr) -> Builder {
    Builder {
        name: name.to_owned(),
        laddr: addr,
        backlog: 4096,
        nodelay: true,
        reuseaddr: Some(true),
        max_packet_size: MAX_PACKET,
        allow_anonymous: false,
        allow_zero_keepalive: false,
        max_keepalive: 1200,
        handshake_timeout: Duration::from_secs(10),
        send_timeout: Duration::from_secs(10),
        max_clientid_len: 128,
        max_topic_levels: 8,
        session_expiry_interval: SESSION_LIFE,
        max_session_expiry_interval: SESSION_LIFE,
        // The broker's own default would drop what waits for a device after five minutes.
        message_expiry_interval: SESSION_LIFE,
        ..Builder::new()
    }
}

fn tls_builder(listen: &TlsListen) -> Builder {
    Builder {
        max_inflight: window(64),
        max_mqueue_len: DEVICE_QUEUE,
        max_subscriptions: 16,
        max_handshaking_limit: 2000,
        tls_cross_certificate: true,
        tls_cert: Some(listen.cert.to_string_lossy().into_owned()),
        tls_key: Some(listen.key.to_string_lossy().into_owned()),
        tls_client_ca_certs: Some(listen.ca.to_string_lossy().into_owned()),
        cert_cn_as_username: true,
        collect_cert_info: true,
        ..base("devices", listen.listen)
    }
}

fn plain_builder(addr: SocketAddr) -> Builder {
    Builder { max_inflight: window(1000), max_mqueue_len: FLEET_QUEUE, ..base("fleet", addr) }
}

fn window(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).unwrap_or(NonZeroU16::MIN)
}

/// `retained_message_ttl` of zero means "for ever"; unset it would be the expiry of messages.
fn retainer_config(path: &Path) -> String {
    format!(
        "max_retained_messages = 200000\nmax_payload_size = \"264K\"\nretained_message_ttl = \"0s\"\n\
         [storage]\ntype = \"sled\"\n[storage.sled]\npath = {}\ncache_capacity = \"{STORE_CACHE}\"\n",
        quoted(path)
    )
}

fn session_config(path: &Path) -> String {
    format!(
        "[storage]\ntype = \"sled\"\n[storage.sled]\npath = {}\ncache_capacity = \"{STORE_CACHE}\"\n",
        quoted(path)
    )
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}
