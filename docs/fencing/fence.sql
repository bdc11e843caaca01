-- Once:
CREATE TABLE IF NOT EXISTS fences (resource TEXT PRIMARY KEY, token BIGINT NOT NULL);

-- In the transaction that writes, before anything else. No row comes back: the token is old, roll back and stop.
INSERT INTO fences (resource, token) VALUES (:resource, :token)
ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE excluded.token >= fences.token
RETURNING token;
