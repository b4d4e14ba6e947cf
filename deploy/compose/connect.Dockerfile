# Kafka Connect with Debezium's PostgreSQL connector: Kafka's own image and the plugin that deploy/local/jars.lock pins.
FROM python:3.11.13-slim-bookworm AS plugins
ARG CDC_MAVEN_REPOSITORY=""
WORKDIR /build
COPY requirements.lock ./
# The lock as constraints: of all that is in it, only what fetches is installed.
RUN sed -e 's/ *\\$//' -e '/^ *--hash=/d' -e '/^ *#/d' requirements.lock > constraints.txt \
 && pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt jgo
COPY deploy/local/jars.py deploy/local/jars.toml deploy/local/jars.lock deploy/local/process.py deploy/local/
RUN python -m deploy.local.jars unpack debezium /plugins

FROM apache/kafka:4.3.1
COPY --from=plugins /plugins /opt/plugins
COPY deploy/compose/connect-start.sh /opt/connect-start.sh
EXPOSE 8083
ENTRYPOINT ["/bin/sh", "/opt/connect-start.sh"]
