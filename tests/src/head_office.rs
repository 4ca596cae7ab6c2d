//! Head office at the other end of MQTT: hears everything, acknowledges events as the fleet does (`mqtt.md`).
//!
//! What it heard is kept across its own reconnects, as a database would.

use anyhow::{Context, Result};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event as Incoming, MqttOptions};
use samovar_wire::mqtt::{Ack, Channel, Envelope, Event, EventBatch, Topic};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Requests that wait for the connection; an acknowledgement that does not fit is made again by the next batch.
const REQUESTS: usize = 1_024;

/// One message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its topic.
    pub topic: Topic,
    /// Whether the broker had kept it.
    pub retained: bool,
    /// Quality of service.
    pub qos: u8,
    /// The envelope.
    pub envelope: Envelope<Value>,
}

/// Everything heard so far.
#[derive(Default)]
pub struct Heard {
    messages: Vec<Message>,
    events: BTreeMap<(String, String), BTreeMap<u64, Event>>,
    unreadable: Vec<String>,
    subscribed: bool,
}

impl Heard {
    /// Messages of one channel, oldest first.
    pub fn on(&self, channel: Channel) -> impl DoubleEndedIterator<Item = &Message> {
        self.messages.iter().filter(move |message| message.topic.channel == channel)
    }

    /// Events of a device by stream and number; each once.
    pub fn events<'a>(&'a self, device: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |((d, _), _)| d == device).flat_map(|(_, events)| events.values())
    }

    /// Numbers missing in a device's streams.
    #[must_use]
    pub fn gaps(&self, device: &str) -> Vec<(String, u64)> {
        let streams = self.events.iter().filter(|((d, _), _)| d == device);
        let holes = streams.flat_map(|((_, stream), events)| {
            let seqs: BTreeSet<u64> = events.keys().copied().collect();
            let (first, last) = (seqs.first().copied().unwrap_or(1), seqs.last().copied().unwrap_or(0));
            let missing: Vec<_> = (first..=last).filter(|seq| !seqs.contains(seq)).collect();
            missing.into_iter().map(|seq| (stream.clone(), seq))
        });
        holes.collect()
    }

    /// Messages on our topics that could not be read.
    #[must_use]
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }
}

/// The listener.
pub struct HeadOffice {
    heard: Arc<Mutex<Heard>>,
    client: AsyncClient,
    polling: JoinHandle<()>,
}

impl HeadOffice {
    /// Connects and subscribes; returns when the subscription holds.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn listen(broker: SocketAddr, environment: &str) -> Result<Self> {
        let mut options = MqttOptions::new("head-office", broker.ip().to_string(), broker.port());
        options.set_keep_alive(Duration::from_secs(30));
        options.set_max_packet_size(Some(1024 * 1024));
        options.set_clean_start(true);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let filter = format!("samovar/v1/{environment}/+/up/#");
        let polling = {
            let (client, heard) = (client.clone(), heard.clone());
            tokio::spawn(async move {
                loop {
                    match event_loop.poll().await {
                        Ok(event) => hear(&client, &heard, &filter, event),
                        // The broker is away; the story brings it back.
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            })
        };
        let office = Self { heard, client, polling };
        crate::eventually("head office is subscribed", Duration::from_secs(15), async || {
            office.heard().subscribed.then_some(())
        })
        .await?;
        Ok(office)
    }

    /// What was heard so far. Not to be held across an await.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes anything, as somebody with access to the broker could.
    ///
    /// # Errors
    /// When the queue to the broker is full.
    pub fn publish(&self, topic: &Topic, retain: bool, payload: Vec<u8>) -> Result<()> {
        self.client
            .try_publish(topic.to_string(), QoS::AtLeastOnce, retain, payload)
            .context("the queue to the broker is full")
    }
}

impl Drop for HeadOffice {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

fn hear(client: &AsyncClient, heard: &Mutex<Heard>, filter: &str, event: Incoming) {
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        Incoming::Incoming(Packet::ConnAck(_)) => {
            let _ = client.try_subscribe(filter, QoS::AtLeastOnce);
        }
        Incoming::Incoming(Packet::SubAck(_)) => heard.subscribed = true,
        Incoming::Incoming(Packet::Publish(publish)) => {
            if let Some((topic, ack)) = note(&mut heard, &publish)
                && let Ok(payload) = serde_json::to_vec(&ack)
            {
                let _ = client.try_publish(topic.to_string(), QoS::AtLeastOnce, false, payload);
            }
        }
        _ => {}
    }
}

/// Keeps a message; gives the acknowledgement it asks for.
fn note(heard: &mut Heard, publish: &Publish) -> Option<(Topic, Ack)> {
    let name = String::from_utf8_lossy(&publish.topic).into_owned();
    let envelope = serde_json::from_slice::<Envelope<Value>>(&publish.payload);
    let (Some(topic), Ok(envelope)) = (Topic::parse(&name), envelope) else {
        heard.unreadable.push(name);
        return None;
    };
    let ack = (topic.channel == Channel::Events).then(|| keep_events(heard, &topic, &envelope)).flatten();
    heard.messages.push(Message {
        topic: topic.clone(),
        retained: publish.retain,
        qos: publish.qos as u8,
        envelope,
    });
    ack.map(|ack| (Topic { channel: Channel::Ack, ..topic }, ack))
}

/// Keeps a batch of events and acknowledges up to the first gap.
fn keep_events(heard: &mut Heard, topic: &Topic, envelope: &Envelope<Value>) -> Option<Ack> {
    let batch: EventBatch = serde_json::from_value(envelope.data.clone()).ok()?;
    let kept = heard.events.entry((topic.device.to_string(), batch.stream.clone())).or_default();
    kept.extend(batch.events.into_iter().map(|event| (event.seq, event)));
    let first = *kept.keys().next()?;
    let up_to = kept.keys().zip(first..).take_while(|(seq, expected)| *seq == expected).last()?.1;
    Some(Ack { stream: Some(batch.stream), up_to: Some(up_to), resync: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Broker;
    use samovar_wire::Timestamp;
    use serde_json::json;

    fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let events: Vec<_> = seqs
            .map(|seq| json!({ "seq": seq, "at": Timestamp::from_millis(0), "kind": "order.quarantined" }))
            .collect();
        let data = json!({ "stream": "events", "events": events });
        json!({ "v": 1, "id": "x", "at": Timestamp::from_millis(0), "epoch": 1, "seq": 1,
            "type": "samovar.events.v1", "data": data })
        .to_string()
        .into_bytes()
    }

    #[tokio::test]
    async fn events_are_heard_once_also_over_a_restart_of_the_broker() {
        let mut broker = Broker::start().await.unwrap();
        let office = HeadOffice::listen(broker.address(), "prod").await.unwrap();
        let topic =
            Topic { environment: "prod".into(), device: "POS-1".parse().unwrap(), channel: Channel::Events };
        office.publish(&topic, false, events(1..=3)).unwrap();
        let heard = async |count: usize| {
            crate::eventually("events", Duration::from_secs(15), async || {
                (office.heard().events("POS-1").count() == count).then_some(())
            })
            .await
            .unwrap();
        };
        heard(3).await;
        broker.stop().await.unwrap();
        broker.restart().await.unwrap();
        crate::eventually("head office is back", Duration::from_secs(15), async || {
            office.publish(&topic, false, events(3..=6)).ok()?;
            (office.heard().events("POS-1").count() == 6).then_some(())
        })
        .await
        .unwrap();
        heard(6).await;
        assert_eq!(office.heard().gaps("POS-1"), []);
    }
}
