//! The serial ports of this machine, with what tells one device from another across re-plugging.

use serde::Serialize;
use serialport::SerialPortType;

/// One serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Where it is opened, such as `/dev/ttyUSB0`. May change when the device is plugged in again.
    pub path: String,
    /// How it is attached.
    pub kind: PortKind,
    /// The USB device behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usb: Option<Usb>,
}

/// How a port is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// An adapter or a device on USB.
    Usb,
    /// A card.
    Pci,
    /// Bluetooth.
    Bluetooth,
    /// On the board, or not told.
    Other,
}

/// A USB device; stays the same when it is plugged in elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usb {
    /// Vendor, four hexadecimal digits.
    pub vendor: String,
    /// Product, four hexadecimal digits.
    pub product: String,
    /// Serial number, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The ports cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("the system does not list its serial ports")]
pub struct ListError(#[source] serialport::Error);

/// Lists the ports, by path.
///
/// # Errors
/// When the system does not say.
pub fn list() -> Result<Vec<Port>, ListError> {
    let mut ports: Vec<Port> = serialport::available_ports()
        .map_err(ListError)?
        .into_iter()
        .map(|info| port(info.port_name, info.port_type))
        .collect();
    ports.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(ports)
}

fn port(path: String, kind: SerialPortType) -> Port {
    let (kind, usb) = match kind {
        SerialPortType::UsbPort(usb) => {
            let found = Usb {
                vendor: format!("{:04x}", usb.vid),
                product: format!("{:04x}", usb.pid),
                serial: usb.serial_number,
                name: usb.product,
            };
            (PortKind::Usb, Some(found))
        }
        SerialPortType::PciPort => (PortKind::Pci, None),
        SerialPortType::BluetoothPort => (PortKind::Bluetooth, None),
        SerialPortType::Unknown => (PortKind::Other, None),
    };
    Port { path, kind, usb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usb_port_is_told_by_vendor_product_and_serial() {
        let info = serialport::UsbPortInfo {
            vid: 0x0403,
            pid: 0x6001,
            serial_number: Some("A1".into()),
            manufacturer: None,
            product: Some("scale".into()),
        };
        let port = port("/dev/ttyUSB0".into(), SerialPortType::UsbPort(info));
        let usb = port.usb.unwrap();
        assert_eq!(
            (usb.vendor.as_str(), usb.product.as_str(), usb.serial.as_deref()),
            ("0403", "6001", Some("A1"))
        );
    }

    #[test]
    fn listing_works_on_a_machine_without_ports() {
        assert!(list().is_ok());
    }
}
