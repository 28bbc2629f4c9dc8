"""MarketPrism: gap-free market data from Binance, OKX and Deribit to NATS JetStream."""

__version__ = "3.0.0"
