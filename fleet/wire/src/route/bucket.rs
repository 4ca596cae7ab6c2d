//! Stable shares: an ID falls into one of 10,000 buckets by a salted hash, and buckets belong to shares in listed
//! order. Growing one share at the edge moves IDs one way only.

use crate::encoding::sha256;

/// All shares of a split together.
pub const BASIS_POINTS: u32 = 10_000;

/// The bucket of an ID, 0 to 9,999.
#[must_use]
pub fn bucket(salt: &str, id: &str) -> u32 {
    let digest = sha256(&[salt.as_bytes(), &[0], id.as_bytes()].concat());
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    let scaled = (u128::from(u64::from_be_bytes(head)) * u128::from(BASIS_POINTS)) >> 64;
    // The product of a u64 and 10,000, shifted by 64 bits, is below 10,000.
    u32::try_from(scaled).unwrap_or(BASIS_POINTS - 1)
}

/// The share a bucket falls into: index into `shares`, which are basis points in listed order.
/// `None` when the shares end before the bucket does.
#[must_use]
pub fn pick_share(bucket: u32, shares: impl IntoIterator<Item = u32>) -> Option<usize> {
    let mut upper = 0_u32;
    shares.into_iter().position(|share| {
        upper = upper.saturating_add(share);
        bucket < upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_hold() {
        assert_eq!(bucket("sg-2026", "POS-SG-0001"), 1517);
        assert_eq!(bucket("sg-2026", "POS-SG-0002"), 3270);
        assert_eq!(bucket("jp", "TEA-JP-9"), 6281);
        assert_eq!(bucket("", "x"), 2363);
    }

    #[test]
    fn a_share_gets_its_part_of_the_ids_within_one_percent() {
        let hits = (0..20_000)
            .filter(|n| pick_share(bucket("salt", &format!("POS-{n:05}")), [2500, 7500]) == Some(0))
            .count();
        assert!((4_800..=5_200).contains(&hits), "{hits} of 20000 at 2500 basis points");
    }

    proptest::proptest! {
        #[test]
        fn growing_the_first_share_moves_ids_one_way_only(id in "[a-z0-9-]{1,20}", small in 0..10_000_u32, more in 0..10_000_u32) {
            let large = (small + more).min(BASIS_POINTS);
            let at = bucket("s", &id);
            let before = pick_share(at, [small, BASIS_POINTS - small]);
            let after = pick_share(at, [large, BASIS_POINTS - large]);
            proptest::prop_assert!(before == after || (before, after) == (Some(1), Some(0)));
        }
    }
}
