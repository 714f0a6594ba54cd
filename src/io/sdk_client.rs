//! What the clients of all AWS services have in common here: they do not retry, and give up in time.

/// A client like `$client`, which tries every call once and gives it up after `$call_timeout`: retries live
/// where the callers decide. A macro, since the clients of the services share no trait.
macro_rules! tried_once {
    ($client:expr, $call_timeout:expr) => {{
        use aws_sdk_kinesis::config::{retry::RetryConfig, timeout::TimeoutConfig};
        let config = $client.config();
        let timeouts = config.timeout_config().map_or_else(TimeoutConfig::builder, TimeoutConfig::to_builder);
        let config = config
            .to_builder()
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.operation_timeout($call_timeout).build())
            .build();
        Client::from_conf(config)
    }};
}

pub(super) use tried_once;
