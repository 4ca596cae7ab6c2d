//! The OpenAPI description of the local API, generated from one table; a test holds the table against the router.

use serde_json::{Value, json};

struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, bool, &'static str)],
    body: Option<&'static str>,
    answers: &'static [(&'static str, &'static str)],
    token: bool,
}

const READ: Operation =
    Operation { method: "get", path: "", summary: "", query: &[], body: None, answers: &[], token: false };

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/orders",
        summary: "Hand over one order; durable before the answer. Header Idempotency-Key is the key, else order_no.",
        body: Some("The order: one JSON object of at most 256 KiB, kept byte for byte"),
        answers: &[
            ("202", "durable: id, order_no, state, seq, accepted_at"),
            ("200", "known already, same content (Idempotent-Replayed: true)"),
            ("400", "not JSON, or no key"),
            ("413", "more than 256 KiB"),
            ("422", "a field is wrong, or the key was used with other content"),
            ("503", "unknown: repeat with the same key"),
            ("507", "the ledger is full"),
        ],
        ..READ
    },
    Operation {
        path: "/v1/orders",
        summary: "A page of orders, by place in the ledger",
        query: &[
            ("state", false, "only this state"),
            ("after_seq", false, "behind this place"),
            ("limit", false, "1 to 200"),
        ],
        answers: &[("200", "orders, next_after_seq"), ("400", "bad query")],
        ..READ
    },
    Operation {
        method: "post",
        path: "/v1/orders:batch",
        summary: "Hand over up to 500 orders; each stands alone",
        body: Some("{ orders: [ { idempotency_key?, order } ] }"),
        answers: &[
            ("207", "results, one per order, in order"),
            ("400", "not JSON"),
            ("413", "too many or too large"),
        ],
        ..READ
    },
    Operation {
        path: "/v1/orders:summary",
        summary: "Counts and ages by state",
        answers: &[("200", "the summary")],
        ..READ
    },
    Operation {
        path: "/v1/orders/{order}",
        summary: "One order by id or order number, with its history; the body only with the token",
        answers: &[("200", "the record"), ("404", "no such order")],
        ..READ
    },
    Operation {
        method: "post",
        path: "/v1/orders/{order}/retry",
        summary: "Send a held or quarantined order again",
        body: Some("{ reason?, by? }"),
        answers: &[("200", "the record"), ("404", "no such order"), ("409", "its state does not allow it")],
        ..READ
    },
    Operation {
        method: "post",
        path: "/v1/orders/{order}/discard",
        summary: "Give an order up; kept in the audit log",
        body: Some("{ reason, by? }"),
        answers: &[
            ("200", "the record"),
            ("401", "no token"),
            ("409", "its state does not allow it"),
            ("422", "no reason"),
        ],
        token: true,
        ..READ
    },
    Operation {
        method: "post",
        path: "/v1/orders/{order}/release",
        summary: "Free a bound order for another origin: it may arrive twice; kept in the audit log",
        body: Some("{ reason, by? }"),
        answers: &[
            ("200", "the record"),
            ("401", "no token"),
            ("409", "it is not bound, or its state does not allow it"),
            ("422", "no reason"),
        ],
        token: true,
        ..READ
    },
    Operation {
        path: "/v1/orders:reconcile",
        summary: "What comparing orders with each origin came to",
        answers: &[("200", "origins")],
        ..READ
    },
    Operation {
        method: "post",
        path: "/v1/orders:reconcile",
        summary: "Compare orders with each origin now, and send again what it lacks",
        body: Some("{ full? }: everything that is remembered, not only what changed since the last match"),
        answers: &[
            ("200", "done, origins"),
            ("202", "it goes on"),
            ("401", "no token"),
            ("503", "too many have asked, or the device is not activated"),
        ],
        token: true,
        ..READ
    },
    Operation {
        path: "/v1/resolve",
        summary: "Where a service is now, and why",
        query: &[
            ("service", true, "such as orders"),
            ("udl", false, "country of the person"),
            ("class", false, "device class"),
        ],
        answers: &[
            ("200", "domain, base_url, origin, addresses, reason; dns says who gave the addresses"),
            ("404", "residency leaves no origin"),
            ("503", "no route table"),
        ],
        ..READ
    },
    Operation {
        path: "/v1/status",
        summary: "What the device says of itself",
        answers: &[("200", "the status")],
        ..READ
    },
    Operation {
        path: "/v1/hosts",
        summary: "Names that point elsewhere for a while: by whom, why, until when, and whether it takes effect",
        answers: &[("200", "overrides, hosts_file")],
        ..READ
    },
    Operation {
        method: "put",
        path: "/v1/hosts/{name}",
        summary: "Point a name of the route table at another address; tried before, proven afterwards",
        body: Some("{ address, reason, ticket?, ttl_s (1 to 259200, 14400 if absent), owner?, force? }"),
        answers: &[
            ("200", "the override, with effective and why"),
            ("401", "no token"),
            ("403", "the name is protected, or the route table forbids it"),
            ("404", "not a name of the route table"),
            ("409", "a line of the hosts file is in the way, or there are 20 already"),
            ("422", "a field is wrong, or the address does not prove that it is the name"),
            ("503", "no route table, or the override cannot be kept"),
        ],
        token: true,
        ..READ
    },
    Operation {
        method: "delete",
        path: "/v1/hosts/{name}",
        summary: "End an override",
        answers: &[("200", "cleared"), ("401", "no token"), ("404", "there is none")],
        token: true,
        ..READ
    },
    Operation { path: "/healthz", summary: "The process is alive", answers: &[("200", "alive")], ..READ },
    Operation {
        path: "/readyz",
        summary: "The ledger takes orders",
        answers: &[("200", "ready"), ("503", "it does not")],
        ..READ
    },
    Operation {
        path: "/metrics",
        summary: "Metrics in the text format of Prometheus",
        answers: &[("200", "metrics")],
        ..READ
    },
    Operation {
        path: "/",
        summary: "The page: how the device is doing",
        answers: &[("200", "HTML")],
        ..READ
    },
    Operation { path: "/page.css", summary: "The style of the page", answers: &[("200", "CSS")], ..READ },
    Operation {
        path: "/v1/openapi.json",
        summary: "This description",
        answers: &[("200", "OpenAPI 3.1")],
        ..READ
    },
];

/// The document, as JSON text.
#[must_use]
pub fn document() -> String {
    let mut paths = serde_json::Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Samovar agent, local API", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "local-token": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Problem": {
                "type": "object",
                "properties": { "type": { "type": "string" }, "title": { "type": "string" },
                                "status": { "type": "integer" }, "detail": { "type": "string" } },
                "required": ["type", "title", "status", "detail"] } },
        },
    })
    .to_string()
}

fn describe(operation: &Operation) -> Value {
    let in_path = [("{order}", "order", "id or order number"), ("{name}", "name", "exact name")];
    let in_path = in_path.into_iter().filter(|(part, ..)| operation.path.contains(part));
    let in_path = in_path.map(|(_, name, what)| parameter(name, "path", true, what));
    let parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|(name, required, what)| parameter(name, "query", *required, what))
        .chain(in_path)
        .collect();
    let responses: serde_json::Map<String, Value> =
        operation.answers.iter().map(|(status, what)| ((*status).to_owned(), answer(status, what))).collect();
    let mut described =
        json!({ "summary": operation.summary, "parameters": parameters, "responses": responses });
    if let Some(body) = operation.body {
        described["requestBody"] = json!({ "required": true, "description": body, "content": { "application/json": { "schema": { "type": "object" } } } });
    }
    if operation.token {
        described["security"] = json!([{ "local-token": [] }]);
    }
    described
}

fn parameter(name: &str, place: &str, required: bool, what: &str) -> Value {
    json!({ "name": name, "in": place, "required": required, "description": what, "schema": { "type": "string" } })
}

fn answer(status: &str, what: &str) -> Value {
    if status.starts_with('2') {
        return json!({ "description": what });
    }
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    json!({ "description": what, "content": { samovar_wire::problem::CONTENT_TYPE: { "schema": schema } } })
}

/// Method and path of everything that is described.
#[cfg(test)]
pub(crate) fn operations() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPERATIONS.iter().map(|operation| (operation.method, operation.path))
}
