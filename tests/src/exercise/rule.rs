//! Which cells may be declared: everything else must be captured.

use super::Side;

/// Why a tier may declare the bytes of a cell and not capture them; `None`: it must capture them.
pub fn may_declare(tier: &str, side: Side, method: &str, kind: &str) -> Option<&'static str> {
    let by_tracepoints = tier == "tracepoints";
    let is_stream_of_tcp = matches!(kind, "tcp4" | "tcp6" | "tcp4_netns");
    let plain = method.strip_prefix("io_uring-").unwrap_or(method);
    let is_spliced = ["splice", "tee", "vmsplice", "sendfile"]
        .iter()
        .any(|name| plain.starts_with(name));
    match (side, method) {
        _ if is_spliced && method != plain => Some("io_uring splice, tee"),
        _ if is_spliced => Some("splice family"),
        (Side::Receive, "recv MSG_TRUNC") if is_stream_of_tcp => {
            Some("recv MSG_TRUNC on TCP, which gives the bytes to nobody")
        }
        _ if by_tracepoints && method.starts_with("aio-") => Some("legacy AIO"),
        (Side::Receive, method)
            if by_tracepoints
                && (method.ends_with(" multishot") || method.ends_with(", provided buffer")) =>
        {
            Some("io_uring multishot, provided buffers")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tracepoints_may_declare_aio_and_provided_buffers() {
        for method in ["aio-pread", "io_uring-recv multishot"] {
            assert!(may_declare("tracepoints", Side::Receive, method, "tcp4").is_some());
            assert_eq!(
                may_declare("kprobes", Side::Receive, method, "tcp4"),
                None,
                "{method}"
            );
        }
    }

    #[test]
    fn no_tier_may_declare_what_a_plain_call_moves() {
        for tier in ["tracepoints", "kprobes", "trampolines"] {
            for method in ["read", "io_uring-read", "int80-read", "end re-opened"] {
                assert_eq!(may_declare(tier, Side::Receive, method, "pipe"), None);
            }
            assert!(may_declare(tier, Side::Send, "tee", "fifo").is_some());
            assert!(may_declare(tier, Side::Send, "io_uring-tee", "fifo").is_some());
        }
    }
}
