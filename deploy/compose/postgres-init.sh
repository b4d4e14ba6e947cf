#!/bin/bash
# At the first start: the role of Debezium and the service, the shop with its rows, and what `cdc plan` would ask the owner of the tables for.
set -euo pipefail
psql=(psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB")
"${psql[@]}" -v password="$CDC_PASSWORD" <<'SQL'
CREATE ROLE cdc LOGIN REPLICATION PASSWORD :'password';
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO cdc;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO cdc;
SQL
sed -e 's/{customers}/10000/g; s/{addresses}/15000/g; s/{products}/3000/g; s/{orders}/25000/g; s/{order_items}/60000/g' /etc/cdc/shop.sql \
  | "${psql[@]}" --quiet --single-transaction
"${psql[@]}" <<'SQL'
CREATE TABLE cdc_shop_signal (id text PRIMARY KEY, type text NOT NULL, data text);
GRANT SELECT, INSERT, DELETE ON cdc_shop_signal TO cdc;
CREATE PUBLICATION cdc_shop FOR TABLE customers, addresses, products, orders, order_items, cdc_shop_signal
  WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);
SQL
