//! Where bytes come from: the kernel's ring, a spool, the proxies' logs.

pub mod proxylog;
