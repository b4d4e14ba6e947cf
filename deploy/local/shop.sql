-- A small shop, with the types that real shops use. {name} marks a number of rows that shop.py fills in; the same numbers give the same rows.

CREATE TYPE tier AS ENUM ('bronze', 'silver', 'gold', 'platinum');
CREATE TYPE order_status AS ENUM ('cart', 'placed', 'paid', 'shipped', 'delivered', 'returned');
CREATE DOMAIN money_amount AS numeric(14, 2);

CREATE TABLE customers (
    customer_id uuid NOT NULL,
    email text NOT NULL,
    full_name varchar(120) NOT NULL,
    tier tier NOT NULL,
    balance money_amount NOT NULL,
    tags text[],
    profile jsonb,
    signup_ip inet,
    born_on date,
    is_active boolean NOT NULL,
    avatar bytea,
    loyalty_points integer,
    created_at timestamptz NOT NULL,
    updated_at timestamptz
);
CREATE TABLE addresses (
    customer_id uuid NOT NULL,
    address_no smallint NOT NULL,
    street text NOT NULL,
    city text NOT NULL,
    country char(2) NOT NULL,
    postal_code varchar(12),
    latitude double precision,
    longitude double precision,
    valid_from timestamp NOT NULL
);
CREATE TABLE products (
    sku text NOT NULL,
    name text NOT NULL,
    description text,
    price numeric(10, 2) NOT NULL,
    weight_kg real,
    attributes jsonb NOT NULL,
    dimensions_mm integer[],
    in_stock bigint NOT NULL,
    released_on date,
    warranty interval
);
-- Long texts lie outside the row: an update that does not touch them does not send them.
ALTER TABLE products ALTER COLUMN description SET STORAGE EXTERNAL;
CREATE TABLE orders (
    order_id bigint NOT NULL,
    customer_id uuid,
    status order_status NOT NULL,
    total numeric(12, 2) NOT NULL,
    currency char(3) NOT NULL,
    note text,
    shipping jsonb,
    client_net cidr,
    deliver_on date,
    deliver_after time,
    placed_at timestamptz NOT NULL
);
CREATE TABLE order_items (
    order_id bigint NOT NULL,
    line_no integer NOT NULL,
    sku text,
    quantity smallint NOT NULL,
    unit_price numeric(10, 2) NOT NULL,
    discount numeric(5, 4) NOT NULL,
    is_gift boolean
);

INSERT INTO customers
SELECT md5('customer' || n)::uuid, 'user' || n || '@example.org', (ARRAY['Ana Sá', 'Łukasz Żak', '王芳', 'O''Brien', 'Zoë "Z" Weiß'])[n % 5 + 1] || ' ' || n,
       (enum_range(NULL::tier))[n % 4 + 1], (n * 7919 % 1000000) / 100.0 - 500, CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' ELSE ARRAY['vip', 'tag ' || n % 9, 'a,"b"'] END,
       CASE WHEN n % 3 > 0 THEN jsonb_build_object('lang', (ARRAY['en', 'de', 'pt'])[n % 3 + 1], 'visits', n % 100, 'news', n % 2 = 0) END,
       ('10.' || n % 256 || '.' || n / 256 % 256 || '.7')::inet, date '1950-01-01' + n % 20000, n % 11 > 0,
       CASE WHEN n % 10 = 0 THEN decode(repeat(md5(n::text), 4), 'hex') END, nullif(n % 1000, 0),
       timestamptz '2020-01-01 00:00:00Z' + n * interval '1 hour 7.123456 seconds', CASE WHEN n % 2 = 0 THEN timestamptz '2024-05-05 12:00:00Z' + n * interval '1 second' END
FROM generate_series(1, {customers}) AS n;

INSERT INTO addresses
SELECT md5('customer' || (n - 1) % {customers} + 1)::uuid, (n - 1) / {customers} + 1, n || ' Main Street', (ARRAY['Lisboa', 'Köln', '東京', 'Austin'])[n % 4 + 1], (ARRAY['PT', 'DE', 'JP', 'US'])[n % 4 + 1],
       lpad((n * 31 % 100000)::text, 5, '0'), (n * 37 % 180000) / 1000.0 - 90, (n * 53 % 360000) / 1000.0 - 180, timestamp '2021-03-04 05:06:07.089' + n * interval '1 minute'
FROM generate_series(1, {addresses}) AS n;

INSERT INTO products
SELECT 'SKU-' || lpad(n::text, 6, '0'), 'Product ' || n, CASE WHEN n % 4 = 0 THEN repeat(md5('text' || n), 100) WHEN n % 4 = 1 THEN NULL ELSE 'Short text ' || n END,
       (n * 7907 % 500000) / 100.0 + 0.99, n % 500 / 8.0, jsonb_build_object('colour', (ARRAY['red', 'grün', 'azul'])[n % 3 + 1], 'sizes', jsonb_build_array(n % 5, n % 7)),
       CASE WHEN n % 3 > 0 THEN ARRAY[n % 300, n % 200, NULL] END, n % 1000, date '2015-06-01' + n % 3000, CASE WHEN n % 2 = 0 THEN make_interval(years => n % 4, days => n % 30) END
FROM generate_series(1, {products}) AS n;

INSERT INTO orders
SELECT n, md5('customer' || n * 13 % {customers} + 1)::uuid, (enum_range(NULL::order_status))[n % 6 + 1], (n * 10473 % 2000000) / 100.0, (ARRAY['EUR', 'USD', 'JPY'])[n % 3 + 1],
       CASE WHEN n % 5 = 0 THEN E'ring twice\n"please"' END, CASE WHEN n % 2 = 0 THEN jsonb_build_object('carrier', 'post', 'kg', n % 40 / 4.0) END, ('192.168.' || n % 256 || '.0/24')::cidr,
       date '2024-01-01' + n % 700, time '08:00' + n % 600 * interval '1 minute', timestamptz '2024-01-01 00:00:00Z' + n * interval '37.5 seconds'
FROM generate_series(1, {orders}) AS n;

INSERT INTO order_items
SELECT (n - 1) % {orders} + 1, (n - 1) / {orders} + 1, 'SKU-' || lpad((n * 17 % {products} + 1)::text, 6, '0'), n % 9 + 1, (n * 7907 % 500000) / 100.0 + 0.99, n % 20 / 100.0, CASE WHEN n % 6 > 0 THEN n % 2 = 0 END
FROM generate_series(1, {order_items}) AS n;

ALTER TABLE customers ADD PRIMARY KEY (customer_id);
ALTER TABLE addresses ADD PRIMARY KEY (customer_id, address_no);
ALTER TABLE products ADD PRIMARY KEY (sku);
ALTER TABLE orders ADD PRIMARY KEY (order_id), ALTER order_id ADD GENERATED BY DEFAULT AS IDENTITY (START WITH 10000000);
ALTER TABLE order_items ADD PRIMARY KEY (order_id, line_no);
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON order_items (sku);
ALTER TABLE addresses ADD FOREIGN KEY (customer_id) REFERENCES customers ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers ON UPDATE CASCADE ON DELETE SET NULL;
ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE order_items ADD FOREIGN KEY (sku) REFERENCES products ON UPDATE CASCADE ON DELETE SET NULL;
