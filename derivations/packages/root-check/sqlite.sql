CREATE TABLE component(name TEXT PRIMARY KEY, stage REAL, bytes INTEGER);
INSERT INTO component VALUES ('musl', 1, 650000), ('libc++', 1, 1200000), ('clang', 2, 61000000), ('lld', 2, 5200000);
CREATE INDEX by_stage ON component(stage);
SELECT stage, count(*), sum(bytes) FROM component GROUP BY stage ORDER BY stage;
WITH RECURSIVE fibonacci(n, a, b) AS (VALUES (1, 0, 1) UNION ALL SELECT n + 1, b, a + b FROM fibonacci WHERE n < 50)
SELECT a FROM fibonacci WHERE n = 50;
SELECT name, rank() OVER (ORDER BY bytes DESC) FROM component ORDER BY name;
SELECT printf('%.6f', sqrt(2.0)), upper(substr('bootstrap', 1, 4)), json_extract('{"a":[1,2,{"b":3}]}', '$.a[2].b');
BEGIN; DELETE FROM component WHERE stage = 1; ROLLBACK;
SELECT count(*) FROM component;
PRAGMA integrity_check;
