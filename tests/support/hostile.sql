-- Tables of the hostile load. Keys of every awkward kind; {rows} rows each, the same ones each time.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy, "quoted"');
CREATE DOMAIN cents AS numeric(12,2);
CREATE DOMAIN stamp AS timestamptz;

-- A text key with quotes and letters of several scripts; values stored out of line, which an UPDATE leaves unsent.
CREATE TABLE doc (
    id text PRIMARY KEY,
    n integer NOT NULL,
    big text DEFAULT 'never this',
    bin bytea,
    js jsonb,
    words text[],
    nums integer[],
    amount numeric,
    price numeric(12,2),
    m mood DEFAULT 'ok',
    at timestamptz,
    ts timestamp,
    d date,
    u uuid,
    flag boolean,
    span interval);
ALTER TABLE doc ALTER big SET STORAGE EXTERNAL, ALTER bin SET STORAGE EXTERNAL, ALTER js SET STORAGE EXTERNAL,
    ALTER words SET STORAGE EXTERNAL, ALTER nums SET STORAGE EXTERNAL, ALTER amount SET STORAGE EXTERNAL;

-- A composite key in another order than its columns; a generated column; the key that changes most.
CREATE TABLE pair (
    a integer NOT NULL,
    b text NOT NULL,
    v integer,
    twice integer GENERATED ALWAYS AS (v * 2) STORED,
    price cents,
    seen stamp,
    f8 double precision,
    f4 real,
    PRIMARY KEY (b, a));

-- Replica identity full: also types whose unsent value could not be told from NULL.
CREATE TABLE whole (
    id bigint PRIMARY KEY,
    v integer,
    big text,
    moods mood[],
    amounts numeric[],
    flags boolean[],
    addr inet[]);
ALTER TABLE whole REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;

-- Every name needs its quotes.
CREATE TABLE "Größe-Order" (
    "Select" integer,
    "пример" text,
    "from where" integer,
    "A" integer,
    "sömé ""q""" numeric(30,10),
    "_time" time,
    PRIMARY KEY ("пример", "Select"));

-- Rows move between partitions when their region changes.
CREATE TABLE part (
    region text NOT NULL,
    id bigint NOT NULL,
    v integer,
    note text,
    PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
CREATE TABLE part_rest PARTITION OF part DEFAULT;

-- Kept with mode soft_delete; a key of a numeric and a timestamptz.
CREATE TABLE soft (
    k numeric NOT NULL,
    t timestamptz NOT NULL,
    v integer,
    big text,
    PRIMARY KEY (k, t));
ALTER TABLE soft ALTER big SET STORAGE EXTERNAL;

INSERT INTO doc SELECT word(i), i, repeat(md5(i::text), 300), decode(repeat(md5(i::text), 300), 'hex'),
        jsonb_build_object('i', i, 'big', repeat(md5('j' || i), 300)), array_fill(md5(i::text), ARRAY[i % 3 * 150]), array_fill(i, ARRAY[i % 4 * 800]),
        i / 7.0, i / 100.0, 'sad', TIMESTAMPTZ '2024-01-01 00:00+00' + i * INTERVAL '1.000001 s', TIMESTAMP '1999-12-31 23:59:59.999999' + i * INTERVAL '1 s',
        CASE i % 50 WHEN 7 THEN DATE 'infinity' ELSE DATE '2000-02-29' + i END, md5(i::text)::uuid, i % 2 = 0, i * INTERVAL '1 mon -1 day'
    FROM generate_series(1, {docs}) i;
INSERT INTO pair (a, b, v, price, seen, f8, f4) SELECT i % 40, word(i / 40), i, i / 100.0, TIMESTAMPTZ '2024-01-01 00:00+00' + i * INTERVAL '1 min', i / 3.0, i / 3.0 FROM generate_series(1, {rows}) i;
INSERT INTO whole SELECT i, i, repeat(md5(i::text), CASE i % 5 WHEN 0 THEN 300 ELSE 1 END), ARRAY['ok', 'happy, "quoted"']::mood[], ARRAY[i, i / 10.0], ARRAY[true, NULL], NULL
    FROM generate_series(1, {rows}) i;
INSERT INTO "Größe-Order" SELECT i % 30, word(i / 30), i, -i, i / 3.0, TIME '00:00:00.000001' + i * INTERVAL '1 s' FROM generate_series(1, {rows}) i;
INSERT INTO part SELECT (ARRAY['eu', 'us', 'jp', 'br'])[i % 4 + 1], i, i, 'note ' || i FROM generate_series(1, {rows}) i;
INSERT INTO soft SELECT i % 50 / 10.0, TIMESTAMPTZ '2024-06-01 12:00+00' + (i / 50) * INTERVAL '1 h', i, CASE WHEN i % 6 = 0 THEN repeat(md5(i::text), 300) END FROM generate_series(1, {rows}) i;
ANALYZE;
