//! HTTP as this program speaks it.
//!
//! Owns the kind of agent that all requests are made by, and which failures may be none the next time. What is asked
//! for, and how often, is the callers' business.

use std::time::Duration;

use ureq::Agent;

/// Reaching a server takes at most this long, so that a machine without network soon says so.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that brings nothing for this long is taken for broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An agent that follows so many redirects, and hands on every answer, whatever its status.
pub(crate) fn agent(max_redirects: u32) -> Agent {
    Agent::config_builder()
        .user_agent(concat!("mlxbatch/", env!("CARGO_PKG_VERSION")))
        // A compressed answer has no length to check and no ranges to resume at.
        .accept_encoding("identity")
        .http_status_as_error(false)
        .max_redirects(max_redirects)
        .max_redirects_will_error(max_redirects > 0)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .build()
        .new_agent()
}

/// Whether an answer of this status may be another the next time.
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}
