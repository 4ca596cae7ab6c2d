//! What to do after a failed activation, in the languages of the product.

use samovar_wire::conditions::Words;

pub(super) const REPLACE: Words = Words {
    en: "To give this device another identity, repeat the command with --replace.",
    zh: "如需更换本机身份，请加上 --replace 重新执行。",
};
pub(super) const WAIT_FOR_ORDERS: Words = Words {
    en: "Restore the line and let the orders arrive first; they belong to the present identity.",
    zh: "请先恢复网络并等待订单送达；这些订单属于当前身份。",
};
pub(super) const SAME_DEVICE: Words = Words {
    en: "Ask the operator for a claim code for the same device and store.",
    zh: "请向运营人员索取同一设备、同一门店的激活码。",
};
pub(super) const CODE: Words = Words {
    en: "Copy the code exactly as the operator gave it.",
    zh: "请按运营人员提供的激活码原样输入。",
};
pub(super) const SERVER: Words = Words {
    en: "Check the address after --server with the operator.",
    zh: "请与运营人员核对 --server 后的地址。",
};
pub(super) const AUTHORITY: Words = Words {
    en: "Name the fleet's certificate authority with --ca FILE.",
    zh: "请用 --ca FILE 指定总部的证书颁发机构文件。",
};
pub(super) const DATA: Words = Words {
    en: "Check that the data directory can be written and that no other activation is running.",
    zh: "请检查数据目录是否可写，且没有其他激活正在进行。",
};
pub(super) const LINE: Words = Words {
    en: "Check the address, the store's line and the device's clock; for a fleet with its own certificate authority add --ca FILE.",
    zh: "请检查地址、门店网络和本机时钟；若总部使用自有证书颁发机构，请加上 --ca FILE。",
};
pub(super) const AGAIN: Words = Words {
    en: "Repeat the same command: the claim is not lost.",
    zh: "请重新执行同一命令：激活码不会失效。",
};
pub(super) const UNKNOWN: Words = Words {
    en: "Check the code for typing errors, or ask the operator for a new one.",
    zh: "请检查激活码是否输入有误，或向运营人员索取新码。",
};
pub(super) const USED: Words = Words {
    en: "A code works once. Ask the operator for a new one, and which device used this one.",
    zh: "激活码只能使用一次。请向运营人员索取新码，并查明该码被哪台设备使用。",
};
pub(super) const EXPIRED: Words =
    Words { en: "Ask the operator for a new code.", zh: "请向运营人员索取新的激活码。" };
pub(super) const SUPPORT: Words =
    Words { en: "Show this message to support.", zh: "请将此信息告知技术支持。" };
pub(super) const UNUSABLE: Words = Words {
    en: "The fleet's answer was not accepted and nothing was kept of it. Show this message to support, then repeat the same command.",
    zh: "总部的应答未被接受，未保存任何内容。请将此信息告知技术支持，然后重新执行同一命令。",
};
