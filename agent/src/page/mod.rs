//! What people and programs on the device see: snapshots of every flow, over the local API.

pub mod api;
mod home;
pub mod openapi;

#[cfg(test)]
mod tests {
    use super::*;

    /// The router of the whole agent is put together from these; every described operation must be in one of them.
    #[test]
    fn every_described_operation_is_served() {
        let served = concat!(
            include_str!("api.rs"),
            include_str!("../orders/intake.rs"),
            include_str!("../orders/reconcile/api.rs"),
            include_str!("../hosts/api.rs")
        );
        for (method, path) in openapi::operations() {
            let route = served.lines().find(|line| line.contains(&format!(".route(\"{path}\"")));
            let route = route.unwrap_or_else(|| panic!("{path} is described, but not served"));
            assert!(route.contains(&format!("{method}(")), "{method} {path} is described, but not served");
        }
        let routes = served.lines().filter(|line| line.contains(".route(\"/")).count();
        let mut described: Vec<_> = openapi::operations().map(|(_, path)| path).collect();
        described.dedup();
        assert_eq!(routes, described.len(), "something is served, but not described");
    }
}
