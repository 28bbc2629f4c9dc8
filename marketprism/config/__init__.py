"""The one configuration: YAML in, checked and typed settings out.

`load` reads a file and tells every problem at once; `Config.settings` is what the rest of MarketPrism works
with; `filter_config_by_exchange` cuts the plain document down to one exchange. All keys stand in one table,
`marketprism.config.keys`, from which the checks, the warnings and docs/configuration.md follow.
"""

from marketprism.config.document import ConfigError
from marketprism.config.loading import (
    Config,
    default_path,
    filter_config_by_exchange,
    load,
    load_what_is_right,
)
from marketprism.config.offers import DATA_TYPES, OFFERS, PUBLISHED_TYPES, Offer
from marketprism.config.settings import (
    BatchSettings,
    ColdSettings,
    ExchangeSettings,
    HotSettings,
    MemoryLimits,
    NatsSettings,
    OrderBookSettings,
    PublishSettings,
    RecordingSettings,
    Settings,
    StorageSettings,
    StreamSettings,
    TlsSettings,
)

__all__ = [
    "DATA_TYPES",
    "OFFERS",
    "PUBLISHED_TYPES",
    "BatchSettings",
    "ColdSettings",
    "Config",
    "ConfigError",
    "ExchangeSettings",
    "HotSettings",
    "MemoryLimits",
    "NatsSettings",
    "Offer",
    "OrderBookSettings",
    "PublishSettings",
    "RecordingSettings",
    "Settings",
    "StorageSettings",
    "StreamSettings",
    "TlsSettings",
    "default_path",
    "filter_config_by_exchange",
    "load",
    "load_what_is_right",
]
