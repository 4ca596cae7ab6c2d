//! A broker's end of one MQTT 5 connection, played by the test packet by packet.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{ConnAck, ConnAckProperties, ConnectReturnCode, Packet, PubAck, Publish};
use rumqttc::v5::mqttbytes::{Error, QoS};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// No step of a test takes longer.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

pub(super) struct Fake {
    listener: TcpListener,
    pub(super) port: u16,
}

impl Fake {
    pub(super) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    pub(super) async fn accept(&self) -> Peer {
        let (stream, _) = within("a connection", self.listener.accept()).await.unwrap();
        Peer { stream, buffer: BytesMut::new() }
    }

    /// Accepts and answers the CONNECT; gives it too.
    pub(super) async fn welcome(
        &self,
        session_present: bool,
        properties: Option<ConnAckProperties>,
    ) -> (Peer, Packet) {
        let mut peer = self.accept().await;
        let connect = peer.read().await;
        let code = ConnectReturnCode::Success;
        peer.write(&Packet::ConnAck(ConnAck { session_present, code, properties })).await;
        (peer, connect)
    }
}

pub(super) struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Peer {
    pub(super) async fn read(&mut self) -> Packet {
        within("a packet", self.read_or_end()).await.expect("the connection ended")
    }

    /// The next packet; `None` at the end of the connection.
    pub(super) async fn read_or_end(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// The next publish; other packets are passed over.
    pub(super) async fn publish(&mut self) -> Publish {
        loop {
            if let Packet::Publish(publish) = self.read().await {
                return publish;
            }
        }
    }

    /// Whatever arrives until nothing has for a while.
    pub(super) async fn read_until_quiet(&mut self, quiet: Duration) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Ok(Some(packet)) = tokio::time::timeout(quiet, self.read_or_end()).await {
            packets.push(packet);
        }
        packets
    }

    pub(super) async fn write(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub(super) async fn acknowledge(&mut self, pkid: u16) {
        self.write(&Packet::PubAck(PubAck::new(pkid, None))).await;
    }

    pub(super) async fn send(&mut self, topic: &str, payload: Vec<u8>) {
        self.write(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload, None))).await;
    }
}

/// The properties of a CONNACK that says nothing, to be changed.
pub(super) fn connack_properties() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}
