# Kafka Connect with Debezium's PostgreSQL connector: Kafka's own image and the plugin at the version of deploy/local/pom.xml.
FROM maven:3.9.9-eclipse-temurin-17 AS plugins
COPY deploy/local/pom.xml /build/pom.xml
WORKDIR /build
RUN version=$(sed -n 's:.*<debezium.version>\(.*\)</debezium.version>.*:\1:p' pom.xml) \
 && mvn -q -B dependency:copy -Dartifact=io.debezium:debezium-connector-postgres:$version:tar.gz:plugin -DoutputDirectory=/build/archives \
 && mkdir /plugins && for archive in archives/*.tar.gz; do tar -xzf "$archive" -C /plugins; done

FROM apache/kafka:4.3.1
COPY --from=plugins /plugins /opt/plugins
COPY deploy/compose/connect-start.sh /opt/connect-start.sh
EXPOSE 8083
ENTRYPOINT ["/bin/sh", "/opt/connect-start.sh"]
