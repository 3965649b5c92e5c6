//! Where bytes come from: the kernel's ring, a spool, the proxies' logs.

pub mod keptlog;
pub mod live;
pub mod proxylog;
pub mod user_record;
